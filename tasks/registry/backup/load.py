"""Restoring a backup into a checkout: verified before anything is touched, each file complete or as it was."""

import filecmp
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.common.errors import InputError
from tasks.common.files import STATE, replacing
from tasks.common.safe_text import without_secrets
from tasks.registry.backup.databases import database_kind, load_database, unknown_to_backup
from tasks.registry.backup.manifest import Manifest, read_manifest
from tasks.registry.backup.save import ARTIFACTS, DATABASE, RECORD, aliased, wanted
from tasks.registry.dvc_outputs.reachable import unreachable
from tasks.registry.dvc_outputs.remote import default_remote, receive
from tasks.registry.dvc_outputs.stages import in_repository
from tasks.registry.mlflow_runs.store import main_checkout, open_store, tracking_uri
from tasks.registry.promotion.decision_log import DECISIONS, read_decisions
from tasks.registry.promotion.decisions import checkout_lock, log_lock
from tasks.settings.params import load_params

REPLACED = STATE / "replaced"  # what a restore has overwritten, by time


def restore(folder: Path, *, overwrite: bool, fetch: bool = False) -> dict[str, Any]:
    """Bring a backup's database, artifacts, record and settings into this checkout, and check what aliases reach.

    A record here that has all decisions of the backup and more stays, with its settings. After a kill, run it again.

    Args:
        folder: the backup.
        overwrite: whether it may take the place of what is newer here.
        fetch: whether what the aliases reach is fetched from DVC's default remote into its cache. `dvc fetch
            --all-commits` leaves out commits that were made before the remote was named in .dvc/config.

    Returns:
        folder, made, restored (paths), record (restored or newer here), replaced (folder of what was overwritten, if
        anything was), aliases, notes, fetched, unreachable (sentences).

    Raises:
        InputError: the backup is damaged, something here is newer, the checkout is no DVC repository, or the tracking
            address names another kind of database than was saved.
    """
    manifest = read_manifest(folder)
    if not in_repository():
        raise InputError(f"{Path.cwd()} is not the root of a DVC repository: clone the project, and restore into it")
    aside = main_checkout() / REPLACED / datetime.now(UTC).strftime("%Y-%m-%dT%H%M%SZ")
    with log_lock():
        _check_database(folder, manifest, overwrite)
        is_newer = _check_record(folder, overwrite)
        restored = [*_restore_artifacts(folder, manifest)]
        if manifest.database != "server":
            moved = (manifest.checkout, main_checkout().as_uri())
            load_database(folder / DATABASE / manifest.database, tracking_uri(), moved, aside)
            restored.append("the tracking database")
        if not is_newer:  # last, and of it the decisions last: without them no command acts on the database
            restored += _restore_record(folder, aside)
    return {
        "folder": str(folder),
        "made": manifest.made,
        "restored": restored,
        "record": "newer here" if is_newer else "restored",
        "replaced": str(aside.relative_to(main_checkout())) if aside.exists() else None,
        **_reached(manifest, fetch),
    }


def _reached(manifest: Manifest, fetch: bool) -> dict[str, Any]:
    """Tell which aliases there are, and what of their contents can be had neither here nor from the remote."""
    params = load_params()
    with checkout_lock():
        policies = aliased(open_store(params.registry.experiment), params)
    notes = []
    if manifest.database == "server":
        notes.append("The backup has no database: trueline sync writes what MLflow lacks.")
    contents = wanted(policies)
    is_fetched = fetch and default_remote() is not None
    if is_fetched:
        receive([*contents.values()])
    return {
        "aliases": {alias: policy["version"] for alias, policy in policies.items()},
        "notes": notes,
        "fetched": is_fetched,
        "unreachable": unreachable(contents, counts_cache=True),
    }


def _check_database(folder: Path, manifest: Manifest, overwrite: bool) -> None:
    if manifest.database == "server":
        return
    uri = tracking_uri()
    kind = database_kind(uri)
    if kind != manifest.database:
        raise InputError(
            f"{folder} holds a {manifest.database} database, but MLflow's address is {without_secrets(uri)}: set "
            "MLFLOW_TRACKING_URI to such a database, or unset it for mlflow.db in this folder"
        )
    own = unknown_to_backup(folder / DATABASE / kind, uri)
    if own and not overwrite:
        raise InputError(
            f"the database at {without_secrets(uri)} has {own} that the backup of {manifest.made} would remove: give "
            "--overwrite to replace it"
        )


def _check_record(folder: Path, overwrite: bool) -> bool:
    """Tell whether the record here is the newer one, and stays.

    Raises:
        InputError: it has decisions that the backup lacks and lacks some of the backup's, or a file has changes that
            git does not have.
    """
    saved = {row["id"] for row in read_decisions(folder / RECORD / DECISIONS)}
    if overwrite:
        return False
    ours = {row["id"] for row in read_decisions(main_checkout() / DECISIONS)}
    if saved < ours:
        return True
    if ours - saved:
        raise InputError(
            f"{DECISIONS} here has {len(ours - saved)} decisions that the backup lacks, and lacks {len(saved - ours)} "
            "of the backup's: bring the two together first (trueline merge), or give --overwrite to take the backup's"
        )
    for name in _record_names(folder):
        here = main_checkout() / name
        if here.exists() and not filecmp.cmp(here, folder / RECORD / name, shallow=False) and not _is_in_git(name):
            raise InputError(f"{name} has changes that are not in git: commit it, or give --overwrite to replace it")
    return False


def _is_in_git(name: str) -> bool:
    """Return whether a file is as its last commit has it."""
    for question in (["ls-files", "--error-unmatch"], ["diff", "--quiet", "HEAD"]):
        command = ["git", *question, "--", name]
        if subprocess.run(command, cwd=main_checkout(), capture_output=True, check=False).returncode:
            return False
    return True


def _restore_artifacts(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Copy MLflow's artifacts to where the database will say they are."""
    if manifest.artifacts is None:
        return
    target = _moved(manifest.artifacts, manifest.checkout)
    for name in manifest.files:
        if name.startswith(f"{ARTIFACTS}/"):
            _copy(folder / name, target / Path(name).relative_to(ARTIFACTS))
    yield str(target.relative_to(main_checkout()) if target.is_relative_to(main_checkout()) else target)


def _moved(address: str, checkout: str) -> Path:
    """Return a folder of the old checkout as it lies in this one; another stays where it was."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    if address.startswith(f"{checkout}/"):
        address = main_checkout().as_uri() + address.removeprefix(checkout)
    return Path(local_file_uri_to_path(address))


def _restore_record(folder: Path, aside: Path) -> Iterator[str]:
    for name in sorted(_record_names(folder), key=lambda name: name == DECISIONS):
        here, saved = main_checkout() / name, folder / RECORD / name
        if here.exists() and not filecmp.cmp(here, saved, shallow=False):
            _copy(here, aside / name)
        _copy(saved, here)
        yield name


def _record_names(folder: Path) -> list[str]:
    files = [path for path in (folder / RECORD).rglob("*") if path.is_file()]
    return [path.relative_to(folder / RECORD).as_posix() for path in files]


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as draft:
        shutil.copyfile(source, draft)
