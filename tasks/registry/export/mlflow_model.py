"""A version's MLflow model and model card.

The logged model of a run only names folder and hash. That of a version becomes an MLflow model with the flavours
`transformers` and `python_function`. If MLflow's artifacts are on this machine, its weights are links to DVC's cache
and take no space. A server gets a copy, and only of champions.
"""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.common.errors import InputError
from tasks.common.files import replacing, write_json
from tasks.registry.dvc_outputs.cache import DamagedError, NotCachedError, check_cached, materialise
from tasks.registry.dvc_outputs.contents import check_folder
from tasks.registry.dvc_outputs.obtain import obtain
from tasks.registry.export import trueline_model
from tasks.registry.export.policy_card import policy_card
from tasks.registry.export.reward_card import reward_card
from tasks.registry.mlflow_runs.store import Store, main_checkout
from tasks.registry.promotion.decisions import PolicyVersion
from tasks.registry.promotion.versions import logged_model_of

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

CARD = "README.md"
IS_EXTERNAL = "mlflow.model.isExternal"  # MLflow's tag of a model that it cannot load
# A hard link is the file itself: the cache may lose its own.
LINKS = ("reflink", "hardlink", "copy")
REQUIRED = ("torch", "transformers", "safetensors", "jinja2")

logger = logging.getLogger(__name__)


class Flavour(NamedTuple):
    """How transformers loads a model: its task, and the classes of the pipeline and the model."""

    task: str
    pipeline: str
    model: str


class Entry(NamedTuple):
    """A version of a registered model, and what is written to MLflow for it."""

    name: str
    version: int
    md5: str  # DVC's hash of the model
    card: str
    flavour: Flavour
    settings: Mapping[str, Any]  # of `predict`


def policy_entry(name: str, policy: PolicyVersion) -> Entry:
    """Return the entry of a policy version."""
    # The auto classes read config.json. For a class that MLflow does not know it would trust code in the folder.
    flavour = Flavour("text-generation", "TextGenerationPipeline", "AutoModelForCausalLM")
    settings = _generation(policy["record"]["params"])
    return Entry(name, policy["version"], policy["md5"], policy_card(policy), flavour, settings)


def reward_entry(name: str, policy: PolicyVersion) -> Entry:
    """Return the entry of the reward model version that a policy version was registered with."""
    flavour = Flavour("text-classification", "TextClassificationPipeline", "AutoModelForSequenceClassification")
    md5 = policy["record"]["reward"]["md5"]
    return Entry(name, policy["reward_version"], md5, reward_card(policy), flavour, {})


def write_mlflow_model(store: Store, entry: Entry, *, upload: bool) -> None:
    """Write the MLflow model of a version, and its model card beside it; repeatable without harm.

    If DVC's cache lacks the weights, the version stays as it is, with a warning: the registry can be rebuilt on a
    machine that has only the decision log.

    Args:
        store: the registry.
        entry: the version.
        upload: whether to copy the weights if they cannot be linked.

    Raises:
        InputError: its logged model has been deleted, or its folder is gone and cannot be made.
    """
    logged = _logged(store, entry)
    folder = local_folder(logged.artifact_location)
    if folder:
        _make_folder(entry, folder)
    _make_loadable(store, entry, logged, upload=upload)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, CARD)
        path.write_text(entry.card, encoding="utf-8")
        store.client.log_model_artifact(logged.model_id, str(path))


def check_weights(store: Store, entry: Entry) -> None:
    """Have the weights that a version is served with, intact, before it becomes champion.

    They are hashed. Damaged ones are written again, and missing ones are fetched from DVC's default remote. Those on a
    server were hashed at upload, and are hashed when they are loaded.

    Raises:
        NotCachedError: neither MLflow, nor DVC's cache, the working folder or DVC's remote has them.
        RemoteError: they are not on this machine, and DVC's remote cannot be asked.
        DamagedError: they are not the evaluated weights, and no other place has these.
        InputError: the version has lost its logged model.
    """
    logged, what = _logged(store, entry), f"{entry.name} version {entry.version}"
    folder = local_folder(logged.artifact_location)
    if folder and (folder / "model").exists():
        try:
            check_folder(folder / "model", entry.md5)
        except DamagedError as error:
            logger.warning("%s: it is written again", error)
            obtain(entry.md5, what)
            shutil.rmtree(folder)
            write_mlflow_model(store, entry, upload=False)
    elif folder or IS_EXTERNAL in logged.tags:
        obtain(entry.md5, what)
    else:
        with suppress(NotCachedError):
            check_cached(entry.md5, what)


def card_path(store: Store, version: "ModelVersion") -> str:
    """Return the path of a version's card relative to the checkout, or its address if it is not in there.

    Raises:
        InputError: the version has lost its logged model.
    """
    location = str(logged_model_of(store, version).artifact_location)
    folder = local_folder(location)
    if folder and folder.is_relative_to(main_checkout()):
        return (folder.relative_to(main_checkout()) / CARD).as_posix()
    return f"{location}/{CARD}"


def _logged(store: Store, entry: Entry) -> "LoggedModel":
    return logged_model_of(store, store.client.get_model_version(entry.name, str(entry.version)))


def _make_folder(entry: Entry, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"MLflow keeps {entry.name} version {entry.version} in {folder}, which is gone and cannot be made "
            f"({error.strerror}): bring that folder back, or have trueline restore bring a backup into this checkout"
        ) from None


def _is_whole(folder: Path) -> bool:
    """Tell whether a folder has a description that MLflow can read, and what it names; the weights are hashed apart."""
    try:
        description = YAML(typ="safe").load((folder / "MLmodel").read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError):
        return False
    is_described = isinstance(description, dict) and "python_function" in (description.get("flavors") or {})
    return is_described and all((folder / name).exists() for name in ("conda.yaml", trueline_model.HASHES))


def _make_loadable(store: Store, entry: Entry, logged: "LoggedModel", *, upload: bool) -> None:
    model_id, folder = logged.model_id, local_folder(logged.artifact_location)
    is_written = IS_EXTERNAL not in logged.tags and not (folder and not _is_whole(folder))
    if is_written or not (folder or upload):
        return
    try:
        if folder:
            with replacing(folder) as draft:
                _write_model(draft, entry, model_id)
        else:
            with tempfile.TemporaryDirectory() as temporary:
                _write_model(Path(temporary, "model"), entry, model_id)
                store.client.log_model_artifacts(model_id, str(Path(temporary, "model")))
    except NotCachedError as error:
        cure = f"{error.cure}, then trueline sync"
        logger.warning("MLflow cannot load %s version %s: DVC's cache lacks it: %s", entry.name, entry.version, cure)
    else:
        if IS_EXTERNAL in logged.tags:
            store.client.delete_logged_model_tag(model_id, IS_EXTERNAL)


def _write_model(folder: Path, entry: Entry, model_id: str) -> None:
    """Write an MLflow model; `mlflow.transformers` would load and copy the weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred")  # from MLflow, about its own class
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
    shutil.copytree(
        folder / "model", tokenizer, ignore=shutil.ignore_patterns("*.safetensors", trueline_model.MEMBER.format("*"))
    )


def _generation(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the generation settings of the evaluation."""
    settings = params.get("evaluate")
    if settings is None:
        return {}
    sampling = {"do_sample": True, "temperature": settings["temperature"], "top_k": 0, "top_p": 1.0}
    return {
        "max_new_tokens": settings["max_new_tokens"],
        **(sampling if settings["temperature"] > 0 else {"do_sample": False}),
    }


def local_folder(location: str) -> Path | None:
    """Return the folder of an artifact location on this machine; None for a remote one."""
    from mlflow.utils.file_utils import local_file_uri_to_path
    from mlflow.utils.uri import is_local_uri

    return Path(local_file_uri_to_path(location)) if is_local_uri(location) else None
