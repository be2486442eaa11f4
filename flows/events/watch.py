"""Watching the sources that params.yaml names: content that has changed, and changes no more, starts a run.

Times and sizes are looked at often, contents are hashed only where those have changed. A pinned hub data set cannot
change by itself: its pin is a source, and so is the file with it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock, Timeout

from flows.checks.preflight import sources
from flows.events import imports, snapshots
from flows.events.prefect_events import SOURCE_CHANGED, emit_named
from flows.events.snapshots import Look
from flows.events.starting import Outcome
from flows.events.watch_state import Seen, WatchState, read_state
from flows.processes.locks import running_flow
from tasks.common.errors import InputError
from tasks.common.files import STATE
from tasks.registry.dvc_outputs.graph import graph_status
from tasks.settings.params import load_params

# unchanged: nothing was written. equal: something was, with the same content. changing: not quiet yet.
# missing: a source is not there. waiting: another flow runs. blocked: something must be fixed first.
Finding = Literal["unchanged", "equal", "changing", "missing", "waiting", "blocked", "ran", "failed", "asked"]
FIRST_LOOK = "seen for the first time; waiting until nothing changes"
Start = Callable[[int], Outcome]
AFTER: dict[Outcome, Finding] = {"succeeded": "ran", "failed": "failed", "asked": "asked", "busy": "waiting"}


class Step(NamedTuple):
    """What came of one look."""

    finding: Finding
    sources: list[str]  # settings whose sources it is about
    message: str = ""


class Watch:
    """The sources of a checkout, and what was last seen of them."""

    def __init__(self, start: Start, quiet: float, *, again: bool = False) -> None:
        """Remember what an earlier watch saw.

        Args:
            start: starts a run, given its number.
            quiet: seconds without a change after which what was written is complete.
            again: whether the first step starts a run in any case.

        Raises:
            InputError: the memory is damaged.
        """
        self._start, self._quiet, self._again = start, quiet, again
        self._state = read_state() or WatchState()
        self._looks: dict[str, Look | None] = {}
        self._remote_looks: dict[str, tuple[str, float]] = {}  # signatures by pointer, and since when
        self._since = float("-inf")  # the looks are what they are
        self._hashed: tuple[dict[str, Look | None], dict[str, Seen]] | None = None  # the looks, and what was found

    def step(self) -> Step:
        """Look once, and start a run where there is reason to.

        Raises:
            InputError: params.yaml or a place elsewhere cannot be read, or the server starts no run.
        """
        paths = {setting: Path(path) for setting, path in sources(load_params()).items()}
        at = snapshots.now()
        if changing := [setting for setting, path in paths.items() if not self._fetch(path, at)]:
            return Step("changing", changing)
        looks = {setting: snapshots.look(path) for setting, path in paths.items()}
        if looks != self._looks:
            self._looks, self._since = looks, at
        if gone := [setting for setting, found in looks.items() if found is None]:
            return Step("missing", gone, f"{', '.join(str(paths[setting]) for setting in gone)} does not exist")
        written = self._written(paths)
        if not written and not self._must_start:
            return Step("unchanged", [])
        if written and at - self._since < self._quiet:
            return self._changing(written)
        found = self._contents(paths, written, at)
        return self._changing(written) if found is None else self._decide(found, written)

    def _changing(self, written: list[str]) -> Step:
        return Step("changing", written) if self._state.sources else Step("changing", [], FIRST_LOOK)

    @property
    def _must_start(self) -> bool:
        return self._again or self._state.pending

    def _fetch(self, source: Path, at: float) -> bool:
        """Fetch what has changed where a source was imported from; tell whether nothing is about to be."""
        pointer = imports.pointer_of(source)
        if pointer is None or running_flow():  # which reads the source
            return True
        name, signature = str(pointer), imports.remote_signature(pointer)
        if signature == self._state.remotes.get(name):
            return True
        if self._remote_looks.get(name, ("", 0.0))[0] != signature:
            self._remote_looks[name] = signature, at
        if at - self._remote_looks[name][1] < self._quiet:
            return False
        imports.fetch(pointer)
        self._state.remotes[name] = signature
        self._state.save()
        return True

    def _written(self, paths: dict[str, Path]) -> list[str]:
        """Name the sources that were written since they were last seen."""
        seen = self._state.sources
        return [
            setting
            for setting, found in self._looks.items()
            if setting not in seen
            or (str(paths[setting]), found and found.signature) != (seen[setting].path, seen[setting].signature)
        ] + [setting for setting in seen if setting not in paths]

    def _contents(self, paths: dict[str, Path], written: list[str], at: float) -> dict[str, Seen] | None:
        """Hash what was written; None where it was written again meanwhile."""
        if self._hashed and self._hashed[0] == self._looks:  # while another flow runs
            return self._hashed[1]
        found = {}
        for setting, path in paths.items():
            if setting not in written:
                found[setting] = self._state.sources[setting]
                continue
            before = self._looks[setting]
            try:
                content = snapshots.content_of(path)
            except OSError:  # gone since
                return None
            if before is None or snapshots.look(path) != before:
                return None
            found[setting] = Seen(str(path), before.signature if before.is_trusted(at) else "", content)
        if all(seen.signature for seen in found.values()):
            self._hashed = self._looks, found
        return found

    def _decide(self, found: dict[str, Seen], written: list[str]) -> Step:
        """Start a run if contents have changed; what is first seen has changed if DVC says so."""
        known = self._state.sources
        changed = [
            setting
            for setting in found.keys() | known.keys()
            if (one := found.get(setting)) is None
            or (other := known.get(setting)) is None
            or (one.path, one.content) != (other.path, other.content)
        ]
        if running_flow() and (changed or self._must_start):
            return Step("waiting", sorted(changed), "another flow runs")
        is_news = _changed_since_last_run(found) if not known else bool(changed)
        if not is_news and not self._must_start:
            self._save(found)
            return Step("equal", written) if known else Step("unchanged", [])
        return self._run(found, sorted(changed))

    def _run(self, found: dict[str, Seen], changed: list[str]) -> Step:
        emit_named(
            SOURCE_CHANGED,
            {"sources": [f"{setting}: {found[setting].path}" for setting in changed if setting in found]},
        )
        state = self._state
        if not state.pending:  # the number of a run that was perhaps started stays, and a server starts it once
            state.pending, state.runs = True, state.runs + 1
            state.save()
        outcome = self._start(state.runs)
        if outcome == "busy":
            return Step("waiting", changed, "another flow was faster")
        self._again, state.pending = False, False
        state.last = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "outcome": outcome}
        self._save(found)
        return Step(AFTER[outcome], changed)

    def _save(self, found: dict[str, Seen]) -> None:
        self._state.sources = found
        self._state.save()


def _changed_since_last_run(found: dict[str, Seen]) -> bool:
    """Ask DVC whether a source is not what the last run read."""
    watched = {Path(seen.path).resolve() for seen in found.values()}
    changes = [each for stage in graph_status().changes.values() for each in stage if isinstance(each, dict)]
    return any(Path(path).resolve() in watched for each in changes for path in each.get("changed deps", {}))


@contextmanager
def one_watch() -> Iterator[None]:
    """Hold the lock of the checkout's watch.

    Raises:
        InputError: another process watches.
    """
    STATE.mkdir(exist_ok=True)
    try:
        with FileLock(STATE / "watch.lock", timeout=0):
            yield
    except Timeout:
        raise InputError("trueline watch runs in this checkout already: wait for it, or end that process") from None
