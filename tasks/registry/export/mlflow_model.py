"""What MLflow holds of a version besides its tags: the model card, and a model that its own loaders load.

The logged model of a run only names folder and hash. A version's becomes an MLflow model with the flavours
`transformers` and `python_function`. Where MLflow's artifacts lie on this machine, its weights are links to DVC's
cache and cost nothing; a server gets a copy, and only of what becomes champion.
"""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, NamedTuple

from tasks.common.files import replacing, write_json
from tasks.registry.dvc_outputs.cache import DamagedError, NotCachedError, check_cached, materialise
from tasks.registry.dvc_outputs.contents import check_folder
from tasks.registry.export import trueline_model
from tasks.registry.export.policy_card import policy_card
from tasks.registry.export.reward_card import reward_card
from tasks.registry.mlflow_runs.store import Store, main_checkout
from tasks.registry.promotion.decisions import Holder

CARD = "README.md"
IS_EXTERNAL = "mlflow.model.isExternal"  # MLflow's tag of a model that it cannot load
# Where weights are linked, a later `dvc gc` takes nothing away: a hard link is the file itself.
LINKS = ("reflink", "hardlink", "copy")
REQUIRED = ("torch", "transformers", "safetensors", "jinja2")

logger = logging.getLogger(__name__)


class Flavour(NamedTuple):
    """How transformers takes a model: its task, and the classes of the pipeline and the model."""

    task: str
    pipeline: str
    model: str


class Entry(NamedTuple):
    """A version of a registered model, and what MLflow is to hold of it."""

    name: str
    version: int
    md5: str  # of the model in DVC
    card: str
    flavour: Flavour
    settings: Mapping[str, Any]  # of `predict`


def policy_entry(name: str, policy: Holder) -> Entry:
    """Describe a policy version."""
    # The classes that choose by config.json: for one it does not know, MLflow would trust code in the folder.
    flavour = Flavour("text-generation", "TextGenerationPipeline", "AutoModelForCausalLM")
    settings = _generation(policy["account"]["params"])
    return Entry(name, policy["version"], policy["md5"], policy_card(policy), flavour, settings)


def reward_entry(name: str, policy: Holder) -> Entry:
    """Describe the reward model version that a policy version was registered with."""
    flavour = Flavour("text-classification", "TextClassificationPipeline", "AutoModelForSequenceClassification")
    md5 = policy["account"]["reward"]["md5"]
    return Entry(name, policy["reward_version"], md5, reward_card(policy), flavour, {})


def furnish(store: Store, entry: Entry, *, upload: bool) -> None:
    """Let MLflow load a version, and write its model card beside it; doing it twice is doing it once.

    A version whose weights DVC's cache lacks stays as it is, with a warning: the registry must come back on a machine
    that has only the record.

    Args:
        store: the registry.
        entry: the version.
        upload: whether to copy the weights where they cannot be linked.
    """
    model_id = str(store.client.get_model_version(entry.name, str(entry.version)).tags["model_id"])
    _make_loadable(store, entry, model_id, upload=upload)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, CARD)
        path.write_text(entry.card, encoding="utf-8")
        store.client.log_model_artifact(model_id, str(path))


def check_weights(store: Store, entry: Entry) -> None:
    """Hash the weights that a version is served with, before anything calls it champion; damaged ones are written anew.

    On a server they were hashed when they were uploaded, and whoever loads them hashes them; here DVC's cache is asked.
    What neither has cannot be wrong: the registry must come back on a machine that has only the record.

    Raises:
        DamagedError: they are not those that were judged, and DVC's cache lacks these or has them damaged.
    """
    model_id = str(store.client.get_model_version(entry.name, str(entry.version)).tags["model_id"])
    place = _local(store.client.get_logged_model(model_id).artifact_location)
    if place is None or not (place / "model").exists():
        with suppress(NotCachedError):
            check_cached(entry.md5, f"{entry.name} version {entry.version}")
        return
    try:
        check_folder(place / "model", entry.md5)
    except DamagedError as error:
        logger.warning("%s: it is written again", error)
        shutil.rmtree(place)
        furnish(store, entry, upload=False)
        if not (place / "model").exists():
            raise


def card_place(store: Store, model_id: str) -> str:
    """Tell where the model card of a logged model lies: from the checkout where it is in there, else its address."""
    location = str(store.client.get_logged_model(model_id).artifact_location)
    folder = _local(location)
    if folder and folder.is_relative_to(main_checkout()):
        return (folder.relative_to(main_checkout()) / CARD).as_posix()
    return f"{location}/{CARD}"


def _make_loadable(store: Store, entry: Entry, model_id: str, *, upload: bool) -> None:
    logged = store.client.get_logged_model(model_id)
    place = _local(logged.artifact_location)
    is_written = IS_EXTERNAL not in logged.tags and not (place and not (place / "MLmodel").exists())
    if is_written or not (place or upload):
        return
    try:
        if place:
            with replacing(place) as draft:
                _write_model(draft, entry, model_id)
        else:
            with tempfile.TemporaryDirectory() as folder:
                _write_model(Path(folder, "model"), entry, model_id)
                store.client.log_model_artifacts(model_id, str(Path(folder, "model")))
    except NotCachedError as error:
        cure = f"{error.cure}, then trueline sync"
        logger.warning("MLflow cannot load %s version %s: DVC's cache lacks it: %s", entry.name, entry.version, cure)
    else:
        if IS_EXTERNAL in logged.tags:
            store.client.delete_logged_model_tag(model_id, IS_EXTERNAL)


def _write_model(folder: Path, entry: Entry, model_id: str) -> None:
    """Write an MLflow model; `mlflow.transformers` cannot do it without loading and copying the weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred")  # MLflow, about a class of its own
        import mlflow.pyfunc
        from mlflow.models import Model

    description = Model(model_id=model_id)
    description.add_flavor(
        "transformers",
        transformers_version=installed("transformers"),
        task=entry.flavour.task,
        instance_type=entry.flavour.pipeline,
        source_model_name=entry.md5,
        pipeline_model_type=entry.flavour.model,
        model_binary="model",
        tokenizer_type="AutoTokenizer",
        components=["tokenizer"],
    )
    mlflow.pyfunc.save_model(
        path=str(folder),
        mlflow_model=description,
        loader_module=trueline_model.__name__.rpartition(".")[2],
        code_paths=[str(trueline_model.__file__)],
        pip_requirements=[f"{package}=={installed(package).partition('+')[0]}" for package in REQUIRED],
        model_config=dict(entry.settings),
    )
    files = materialise(entry.md5, folder / "model", LINKS, what=f"{entry.name} version {entry.version}")
    write_json(folder / trueline_model.HASHES, files)
    tokenizer = folder / "components/tokenizer"
    shutil.copytree(folder / "model", tokenizer, ignore=shutil.ignore_patterns("*.safetensors"))


def _generation(params: Mapping[str, Any]) -> dict[str, Any]:
    """Generate as the evaluation did."""
    settings = params.get("evaluate")
    if settings is None:
        return {}
    sampling = {"do_sample": True, "temperature": settings["temperature"], "top_k": 0, "top_p": 1.0}
    return {
        "max_new_tokens": settings["max_new_tokens"],
        **(sampling if settings["temperature"] > 0 else {"do_sample": False}),
    }


def _local(location: str) -> Path | None:
    """Give the folder behind an artifact location, where it is one of this machine."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    return Path(local_file_uri_to_path(location)) if is_local_uri(location) else None
