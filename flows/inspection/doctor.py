"""Checks of this machine and checkout, with the cure for each fault."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flows.checks.preflight import check_exists, sources
from flows.checks.surroundings import check_git, check_locations, check_room, free_bytes
from flows.inspection.status import record_fault, registry
from flows.prefect_server.address import check_reachable, named_server
from flows.processes import locks
from tasks.common.cpus import usable_cpus
from tasks.common.errors import InputError
from tasks.common.files import MODELS, STATE, read_json
from tasks.common.network import check_proxies
from tasks.common.python_files import is_python
from tasks.common.safe_text import without_secrets
from tasks.registry.dvc_outputs.cache import DAMAGED
from tasks.registry.dvc_outputs.graph import graph_status, places
from tasks.registry.dvc_outputs.stages import needs_git
from tasks.registry.mlflow_runs.addresses import TRACKING, named
from tasks.registry.mlflow_runs.provenance import commit_fault
from tasks.settings.params import Params, load_params
from tasks.stage import last_failure

Level = Literal["ok", "warn", "fail"]
LOCK_FILE = Path("requirements.lock")
OLDEST_PYTHON = (3, 11)
GIGABYTE = 2**30
USUAL_WIDTH = 1024  # of hidden states, where the base model is not here yet
# DVC's cache keeps every model ever made, until `trueline gc`. DVC's own gc would take what aliases need.
LITTLE_FREE = 10 * GIGABYTE
ROOM = (
    "trueline gc, or have outputs be links to DVC's cache (dvc config --local cache.type hardlink,copy), or move it to "
    "another disk (dvc cache dir --local FOLDER)"
)


class Finding(NamedTuple):
    """What one check found."""

    check: str
    level: Level
    found: str
    cure: str  # empty where nothing is wrong


def examine() -> list[Finding]:
    """Run every check; a check that finds nothing wrong says so."""
    return [finding for check in CHECKS for finding in check()]


def check_python() -> Iterator[Finding]:
    """The interpreter is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Finding("Python", "fail", found, "install Python 3.11 or later and run make install PYTHON=python3.11")
    else:
        yield Finding("Python", "ok", found, "")


def check_packages() -> Iterator[Finding]:
    """The installed versions are those of the lock file."""
    if not LOCK_FILE.exists():
        yield Finding("packages", "warn", f"{LOCK_FILE} does not exist", "restore it from git")
        return
    pinned = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", LOCK_FILE.read_text(encoding="utf-8"), re.MULTILINE))
    other = [f"{name} {_installed(name)} (not {wanted})" for name, wanted in pinned.items() if _differs(name, wanted)]
    if other:
        shown = ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
        yield Finding("packages", "warn", shown, f"make clean, then make install: installs what {LOCK_FILE} says")
    else:
        yield Finding("packages", "ok", f"{len(pinned)} as in {LOCK_FILE}", "")


def check_repositories() -> Iterator[Finding]:
    """Git is installed, and the folder is the root of a DVC repository in a git repository."""
    yield _outcome("repository", check_git, "git and DVC")
    if needs_git() and (fault := commit_fault()):
        found, _, cure = fault.rpartition(": ")
        yield Finding("git", "warn" if shutil.which("git") else "fail", found, cure)


def check_network() -> Iterator[Finding]:
    """Proxies that the environment names can be used, and a Prefect server that it names answers."""
    yield _outcome("proxies", check_proxies, "none that cannot be used")
    if server := named_server():
        yield _outcome("Prefect", lambda: check_reachable(server), without_secrets(server))


def check_disk() -> Iterator[Finding]:
    """All that a run writes to are real folders on disks that may be written, with room for what it will write."""
    free = free_bytes(Path.cwd())
    level: Level = "warn" if free < LITTLE_FREE else "ok"
    cure = "" if level == "ok" else ROOM
    yield Finding("disk", level, f"{free / GIGABYTE:.1f} GB free", cure)
    folders = _outcome("folders", check_locations, "real ones, and can be written")
    yield folders
    if folders.level == "ok":
        yield _outcome(
            "room",
            lambda: check_room(load_params(), places(), graph_status().unfinished),
            "enough for what a run will write",
        )


def _outcome(check: str, look: Callable[[], object], well: str) -> Finding:
    try:
        look()
    except InputError as error:
        found, _, cure = str(error).partition(": ")
        return Finding(check, "fail", found, cure)
    return Finding(check, "ok", well, "")


def check_settings() -> Iterator[Finding]:
    """params.yaml holds, what it names exists, and the tracking server answers."""
    try:
        params = load_params()
    except InputError as error:
        yield Finding("settings", "fail", str(error), "fix params.yaml")
        return
    yield Finding("settings", "ok", "params.yaml holds", "")
    for key, source in sources(params).items():
        try:
            check_exists(key, source)
            yield Finding(key, "ok", source, "")
        except InputError:
            yield Finding(key, "fail", f"{source} does not exist", f"trueline configure {key}=PATH")
    unreachable = registry(params)["error"]
    if record_fault():
        pass  # check_record reports it; the registry cannot be used until it is repaired
    elif unreachable:
        found, _, cure = unreachable.rpartition(": ")
        yield Finding("MLflow", "fail", found or unreachable, cure)
    else:
        uri = without_secrets(named(TRACKING) or "")
        yield Finding("MLflow", "ok", uri or "mlflow.db in the checkout", "")
    yield from check_device(params.runtime.device)
    yield from check_threads(params)


def check_record() -> Iterator[Finding]:
    """The record of decisions can be read: what is wrong with it stops every command that looks at the registry."""
    fault = record_fault()
    if fault:
        found, _, cure = fault.partition(": ")
        yield Finding("record", "fail", found, cure)
    else:
        yield Finding("record", "ok", "decisions.jsonl can be read", "")


def check_device(wanted: str) -> Iterator[Finding]:
    """The device that the settings ask for is there."""
    import torch

    found = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    if wanted == "cuda" and not torch.cuda.is_available():
        yield Finding("device", "fail", found, "trueline configure runtime.device=auto")
    else:
        yield Finding("device", "ok", f"{found}, {os.cpu_count()} CPU cores", "")


def check_threads(params: Params) -> Iterator[Finding]:
    """No other number of CPU threads is clearly faster here and now; half a second of measuring."""
    from flows.inspection.threads import better, measured

    now, cpus = params.runtime.threads, usable_cpus()
    if faster := better(now, measured(sorted({1, now, cpus}), _width(params))):
        best, shown = faster
        cure = f"trueline configure runtime.threads={best} (results differ by rounding)"
        yield Finding("threads", "warn", shown, cure)
    else:
        yield Finding("threads", "ok", f"{now} of {cpus} CPUs", "")


def _width(params: Params) -> int:
    """The width of the base model's hidden states, as far as it is known."""
    if is_python(params.base.source):
        return params.base.scratch.hidden_size
    for folder in (Path(params.base.source), MODELS / "base"):
        if (folder / "config.json").is_file():
            config: dict[str, Any] = read_json(folder / "config.json")
            width = (config.get("text_config") or config).get("hidden_size")
            return width if isinstance(width, int) else USUAL_WIDTH
    return USUAL_WIDTH


def check_leftovers() -> Iterator[Finding]:
    """What an earlier run left behind: a failure, an unfinished training, half-written files."""
    running = locks.running_flow()
    if running:
        yield Finding("flow", "warn", f"runs: {running}", "wait for it, or end that process")
        return
    failure = last_failure()
    if failure:
        yield Finding("failure", "warn", f"{failure.stage}: {failure.message}", "fix it, then trueline run")
    checkpoints = sorted(path.name for path in (STATE / "checkpoints").glob("*") if any(path.iterdir()))
    if checkpoints:
        found = f"unfinished: {', '.join(checkpoints)}"
        yield Finding("checkpoints", "warn", found, "trueline run goes on from there, if the settings are the same")
    drafts = sorted(str(path) for place in ("data", "models", "metrics", "reports") for path in _drafts(Path(place)))
    if drafts:
        yield Finding("drafts", "warn", f"half-written: {', '.join(drafts)}", f"rm -r {shlex.join(drafts)}")
    damaged = sorted(DAMAGED.glob("*"))
    if damaged:
        found = f"{len(damaged)} objects of DVC's cache were not what they say"
        yield Finding("damaged", "warn", found, f"have the disk examined, then rm -r {DAMAGED}")
    if not (failure or checkpoints or drafts or damaged):
        yield Finding("leftovers", "ok", "none", "")


def _drafts(place: Path) -> list[Path]:
    """The temporary folders of tasks.common.files.replacing, which only a process that was killed leaves behind."""
    return [path for path in place.glob(".*.*") if path.is_dir()]


def _installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "missing"


def _differs(name: str, wanted: str) -> bool:
    return _installed(name) != wanted


def check_pip() -> Iterator[Finding]:
    """The installed packages agree with one another."""
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if checked.returncode == 0:
        yield Finding("pip check", "ok", "no broken requirements", "")
    else:
        first = (checked.stdout or checked.stderr).splitlines()[0]
        yield Finding("pip check", "warn", first, f"make clean, then make install: installs what {LOCK_FILE} says")


CHECKS: list[Callable[[], Iterator[Finding]]] = [
    check_python,
    check_packages,
    check_pip,
    check_repositories,
    check_network,
    check_disk,
    check_settings,
    check_record,
    check_leftovers,
]
