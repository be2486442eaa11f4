"""Exporting a version or its reward model as a folder: full weights, or a LoRA adapter on the SFT model."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from tasks.common.errors import InputError
from tasks.common.files import read_json, replacing, write_json
from tasks.registry.dvc_outputs.cache import NotCachedError, has_hard_links, materialise
from tasks.registry.export.card import has_reward_model
from tasks.registry.export.deleted_weights import WEIGHTS_DELETED
from tasks.registry.export.mlflow_model import CARD
from tasks.registry.export.policy_card import policy_card
from tasks.registry.export.reward_card import reward_card
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion.decisions import PolicyVersion
from tasks.registry.promotion.versions import find, read_policy_version, registered_with
from tasks.settings.params import Params

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

BASE = "base"  # folder of an adapter's base model, beside the adapter
# Writing into a hard link would change DVC's cache: only where DVC's own settings have them. Never a symbolic link,
# which would leave the folder empty wherever it is taken.
LINKS = ("reflink", "hardlink", "copy")


class Exported(TypedDict):
    """What was exported."""

    model: str
    version: int
    md5: str  # DVC's hash of the model
    folder: str
    files: list[str]  # relative to the folder


def export(params: Params, version_or_alias: str, folder: Path, *, as_adapter: bool = False) -> Exported:
    """Write a version's model and its card, from DVC's cache, completely or not at all.

    Args:
        params: all settings.
        version_or_alias: such as 3 or champion.
        folder: the output folder; it must not exist, or be empty.
        as_adapter: write the alignment as a LoRA adapter, with the SFT model in `base/`.

    Raises:
        InputError: there is no such version, the folder is not empty, DVC's cache lacks the weights, or the version was
            not trained with adapters.
    """
    target = _check_empty(folder)
    version = find(open_store(params.registry.experiment), params, version_or_alias)
    policy = read_policy_version(version)
    lora = _lora(policy) if as_adapter else None
    with _explained(version), replacing(target) as draft:
        if lora:
            _write_adapter(policy, lora, draft)
        else:
            _restore(policy["md5"], draft, f"version {policy['version']}")
        _write_card(draft, policy_card(policy, as_adapter=as_adapter))
    return _exported(params.registry.policy, policy["version"], policy["md5"], folder)


def export_reward(params: Params, version_or_alias: str, folder: Path) -> Exported:
    """Write the reward model of a policy version and its card, as `export` does the policy.

    Raises:
        InputError: there is no such version, it has no reward model, the folder is not empty, or DVC's cache lacks the
            weights.
    """
    target, store = _check_empty(folder), open_store(params.registry.experiment)
    asked = find(store, params, version_or_alias)
    policy = registered_with(store, params, read_policy_version(asked))
    if not has_reward_model(policy["record"]):
        raise InputError(f"version {version_or_alias} has no reward model, it learned from functions: export another")
    version, md5 = policy["reward_version"], policy["record"]["reward"]["md5"]
    with _explained(asked), replacing(target) as draft:
        _restore(md5, draft, f"reward model version {version}")
        _write_card(draft, reward_card(policy))
    return _exported(policy["record"]["reward"]["name"], version, md5, folder)


@contextmanager
def _explained(version: "ModelVersion") -> Iterator[None]:
    """Say of weights that are nowhere that they were deleted, where they were."""
    try:
        yield
    except NotCachedError:
        if day := version.tags.get(WEIGHTS_DELETED):
            commit = version.tags.get("git_commit", "that made it")
            raise InputError(
                f"the weights of version {version.version} were deleted by trueline gc on {day}: check out commit "
                f"{commit} and run trueline run, which makes them again"
            ) from None
        raise


def _check_empty(folder: Path) -> Path:
    target = folder.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{folder} is not an empty folder: name another, or empty it first")
    return target


def _exported(model: str, version: int, md5: str, folder: Path) -> Exported:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Exported(model=model, version=version, md5=md5, folder=str(folder), files=files)


def _write_adapter(policy: PolicyVersion, lora: dict[str, Any], draft: Path) -> None:
    from tasks.registry.export.adapter import write_adapter

    with tempfile.TemporaryDirectory(dir=draft.parent) as folder:
        merged = Path(folder, "merged")
        _restore(policy["md5"], merged, f"version {policy['version']}")
        _restore(policy["record"]["sft"]["md5"], draft / BASE, f"the SFT model of version {policy['version']}")
        write_adapter(merged, draft / BASE, draft, rank=lora["rank"], alpha=lora["alpha"], targets=lora["targets"])
        is_model = shutil.ignore_patterns("*.safetensors*", "config.json", "generation_config.json")
        shutil.copytree(merged, draft, ignore=is_model, dirs_exist_ok=True)  # the tokenizer and its chat template
    described = draft / "adapter_config.json"
    write_json(described, read_json(described) | {"base_model_name_or_path": BASE})


def _write_card(folder: Path, text: str) -> None:
    (folder / CARD).unlink(missing_ok=True)  # the model's own may be a link
    (folder / CARD).write_text(text, encoding="utf-8")


def _restore(md5: str, folder: Path, what: str) -> None:
    links = [link for link in LINKS if link != "hardlink" or has_hard_links()]
    try:
        materialise(md5, folder, links, what=what)
    except NotCachedError as error:
        raise NotCachedError(f"DVC's cache lacks the weights of {what} ({md5})", error.cure) from None


def _lora(policy: PolicyVersion) -> dict[str, Any]:
    lora: dict[str, Any] = policy["record"]["params"].get("lora", {"rank": 0})
    if lora["rank"] == 0:
        raise InputError(
            f"version {policy['version']} was trained without adapters (lora.rank 0): export it without --adapter"
        )
    return lora
