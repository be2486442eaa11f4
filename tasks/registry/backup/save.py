"""Writing a backup: the tracking database, MLflow's artifacts beside it, the record and the settings."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.common.errors import InputError
from tasks.common.files import replacing
from tasks.common.safe_text import without_secrets
from tasks.registry.backup.databases import database_kind, save_database
from tasks.registry.backup.manifest import Manifest, write_manifest
from tasks.registry.dvc_outputs.reachable import unreachable
from tasks.registry.dvc_outputs.remote import default_remote
from tasks.registry.dvc_outputs.sending import send
from tasks.registry.dvc_outputs.stages import LOCK_FILE
from tasks.registry.export.mlflow_model import CARD, local_folder
from tasks.registry.export.trueline_model import HASHES
from tasks.registry.mlflow_runs.store import Store, main_checkout, open_store
from tasks.registry.promotion.candidate import OPPONENT_FILE
from tasks.registry.promotion.decision_log import DECISIONS
from tasks.registry.promotion.decisions import PolicyVersion, checkout_lock, past_decisions
from tasks.registry.promotion.versions import find_by_alias
from tasks.settings.params import PARAMS_FILE, Params

DATABASE, ARTIFACTS, RECORD = Path("database"), Path("mlruns"), Path("record")
PACKAGES = ("trueline", "mlflow", "dvc")


def backup(params: Params, folder: Path, *, push: bool = False) -> dict[str, Any]:
    """Write a backup into a new or empty folder, complete or not at all, and check what the aliases reach.

    Weights and data are not in it: DVC's remote has them. A run may be under way.

    Args:
        params: all settings.
        folder: new or empty.
        push: whether what the aliases reach is sent from DVC's cache to its default remote first. `dvc push
            --all-commits` leaves out commits that were made before the remote was named in .dvc/config.

    Returns:
        folder, made, database, files, bytes, aliases, notes (what must be saved elsewhere), unreachable (sentences).

    Raises:
        InputError: the folder is not empty, MLflow or DVC's remote cannot be asked, or PostgreSQL cannot be dumped.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder: name another, or empty it first")
    with checkout_lock():
        store = open_store(params.registry.experiment)
        policies = aliased(store, params)
        with replacing(folder.resolve()) as draft:
            draft.mkdir()
            manifest = _write(store, params, draft, policies)
    contents = wanted(policies)
    if push and default_remote():
        send([*contents.values()])
    return {
        "folder": str(folder),
        "made": manifest.made,
        "database": manifest.database,
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "aliases": manifest.aliases,
        "notes": _notes(store, manifest),
        "unreachable": unreachable(contents),
    }


def aliased(store: Store, params: Params) -> dict[str, PolicyVersion]:
    """Find the policy versions that have an alias, by alias."""
    models = store.client.search_registered_models(f"name = '{params.registry.policy}'")
    found = {alias: find_by_alias(store, params, alias) for alias in sorted(models[0].aliases if models else {})}
    return {alias: policy for alias, policy in found.items() if policy}


def wanted(policies: dict[str, PolicyVersion]) -> dict[str, str]:
    """Name the contents of versions, each once: what export and trace need of them."""
    found: dict[str, str] = {}
    for alias, policy in policies.items():
        record, which = policy["record"], f"of {alias} (version {policy['version']})"
        parts = {"policy": policy["md5"], "reward model": record["reward"]["md5"], "SFT model": record["sft"]["md5"]}
        parts |= {"data": record["data"]["md5"], "AI preferences": record["data"].get("ai_preferences")}
        known = set(found.values())
        found |= {f"the {part} {which}": md5 for part, md5 in parts.items() if md5 and md5 not in known}
    return found


def record_files(params: Params) -> dict[str, Path]:
    """Name the files of the record and the settings, by their name in the backup."""
    root = main_checkout()
    names = [DECISIONS, str(LOCK_FILE), str(OPPONENT_FILE), str(PARAMS_FILE)]
    exclude = Path(params.prepare.exclude)
    if not exclude.is_absolute() and ".." not in exclude.parts:
        names.append(exclude.as_posix())
    return {name: root / name for name in names}


def _write(store: Store, params: Params, draft: Path, policies: dict[str, PolicyVersion]) -> Manifest:
    decisions = len(past_decisions())
    for name, path in record_files(params).items():
        if path.exists():
            (draft / RECORD / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft / RECORD / name)
    kind = database_kind(store.uri)
    location = str(store.client.get_experiment(store.experiment_id).artifact_location)
    artifacts = local_folder(location)
    if kind != "server":
        save_database(store.uri, draft / DATABASE / kind)
    if artifacts:  # after the database: what that names is there
        _copy_artifacts(artifacts, draft / ARTIFACTS)
    known = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {package: version(package) for package in PACKAGES},
        "checkout": main_checkout().as_uri(),
        "database": kind,
        "artifacts": artifacts.as_uri() if artifacts else None,
        "decisions": decisions,
        "aliases": {alias: policy["version"] for alias, policy in policies.items()},
    }
    return write_manifest(draft, known)


def _copy_artifacts(source: Path, target: Path) -> None:
    for path in _artifacts(source):
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.relative_to(source))


def _artifacts(folder: Path) -> Iterator[Path]:
    """List the files of artifacts; of a registered model the card alone, because the rest is written from DVC again."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    is_model = any(path.name == HASHES for path in entries)
    for path in entries:
        if path.is_dir() and not is_model and not path.name.startswith("."):
            yield from _artifacts(path)
        elif path.is_file() and (not is_model or path.name == CARD):
            yield path


def _notes(store: Store, manifest: Manifest) -> list[str]:
    notes, server = [], without_secrets(store.uri)
    if manifest.database == "server":
        notes.append(
            f"MLflow's database is behind {server}: back it up where that runs. Saved here nonetheless: decisions, "
            "dvc.lock, opponent and settings, from which trueline sync restores versions, aliases and the last runs."
        )
    if manifest.artifacts is None:
        location = store.client.get_experiment(store.experiment_id).artifact_location
        notes.append(f"MLflow's artifacts lie at {without_secrets(str(location))}: back them up there.")
    return notes
