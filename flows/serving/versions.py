"""Following aliases: a version is loaded beside the one that answers, takes its place, and the old one is freed.

Requests under way end on the version that they began on. What cannot be loaded, or a registry that does not answer,
changes nothing but what /ready and /metrics tell.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from flows.serving.backends import Backend
from tasks.common.errors import InputError
from tasks.registry.serving.versions import ServedVersion
from tasks.stage import classify

RETRY_SECONDS = 60.0  # until a version that could not be loaded is tried again
logger = logging.getLogger(__name__)


class Reader(Protocol):
    """Tells which version an alias leads to."""

    def read(self, alias: str) -> ServedVersion | None:
        """Find the version; None where no version has the alias."""

    def last(self, alias: str) -> ServedVersion | None:
        """Give what was last read of it, by an earlier process too; None where nothing was."""


class Loaded:
    """A version that can answer."""

    def __init__(self, version: ServedVersion, backend: Backend) -> None:
        """Begin without requests."""
        self.version, self.backend = version, backend
        self.requests = 0  # under way


class Failure(NamedTuple):
    """A version that could not be loaded."""

    version: ServedVersion
    reason: str
    retry_at: float  # monotonic


class Versions:
    """The versions that answer, by alias."""

    def __init__(self, aliases: Sequence[str], reader: Reader, load: Callable[[ServedVersion], Backend]) -> None:
        """Know the aliases; nothing is loaded yet.

        Args:
            aliases: the first one answers whatever no other does.
            reader: tells which version an alias leads to.
            load: loads a version.
        """
        self.aliases = list(aliases)
        self.registry_answers = True
        self._reader, self._load = reader, load
        self._by_alias: dict[str, Loaded] = {}
        self._failures: dict[str, Failure] = {}  # by alias
        self._alive: list[Loaded] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float, *, wait: bool = False) -> None:
        """Load what the aliases lead to, and follow them from now on.

        Args:
            seconds: between two looks, in a thread.
            wait: begin without a version where the first alias leads to none that can be loaded yet.

        Raises:
            InputError: without `wait`, the first alias leads to nothing that can be loaded, or MLflow cannot be
                reached and never was.
        """
        for alias in self.aliases:
            try:
                wanted = self._reader.read(alias)
            except Exception as error:  # a restart while MLflow is away
                wanted = self._reader.last(alias)
                if wanted is None and alias == self.aliases[0] and not wait:
                    raise
                self.registry_answers = False
                what = f"what it last gave for {alias} is served" if wanted else f"nothing is served for {alias}"
                logger.warning("%s; %s", classify(error)[1], what)
            if wanted is not None:
                self._lead(alias, wanted)
        first = self.aliases[0]
        if first not in self._by_alias:
            failure = self._failures.get(first)
            reason = failure.reason if failure else f"no version has the alias {first}: run trueline run first"
            if not wait:
                raise InputError(reason)
            logger.warning("%s; requests are refused until one answers", reason)
        self._thread = threading.Thread(target=self._follow, args=(seconds,), name="aliases", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer, and free every version."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        with self._lock:
            self._by_alias.clear()
        self.free_unused()

    @contextmanager
    def use(self, names: Sequence[str]) -> Iterator[Loaded]:
        """Hold a version for a request.

        Args:
            names: aliases, or versions as clients read them (trueline-policy/7); the first that answers is taken.

        Raises:
            KeyError: none of them does.
        """
        with self._lock:
            answering = {loaded.version.name: loaded for loaded in self._by_alias.values()} | self._by_alias
            loaded = answering[next((name for name in names if name in answering), names[-1])]
            loaded.requests += 1
        try:
            yield loaded
        finally:
            with self._lock:
                loaded.requests -= 1

    def current(self) -> dict[str, Loaded]:
        """Give the versions that answer, by alias."""
        with self._lock:
            return dict(self._by_alias)

    def failures(self) -> dict[str, Failure]:
        """Give the versions that aliases lead to and that cannot be loaded, by alias."""
        with self._lock:
            return dict(self._failures)

    def alive(self) -> list[Loaded]:
        """List what is loaded: what answers, and what still has requests under way."""
        with self._lock:
            return list(self._alive)

    def look(self) -> None:
        """Look once where the aliases lead, and follow them."""
        for alias in self.aliases:
            try:
                wanted = self._reader.read(alias)
            except Exception as error:  # whatever is wrong with the registry: serving goes on with what there is
                if self.registry_answers:
                    logger.warning("%s; serving goes on with what is loaded", classify(error)[1])
                self.registry_answers = False
                return
            if not self.registry_answers:
                logger.warning("MLflow answers again")
            self.registry_answers = True
            if wanted is not None:
                self._lead(alias, wanted)
            elif alias in self._by_alias:
                self._lose(alias)

    def free_unused(self) -> None:
        """Close the versions that no alias leads to and no request uses."""
        with self._lock:
            in_use = list(self._by_alias.values())
            unused = [loaded for loaded in self._alive if loaded not in in_use and loaded.requests == 0]
            self._alive = [loaded for loaded in self._alive if loaded not in unused]
        for loaded in unused:
            loaded.backend.close()
            logger.info("%s is freed", loaded.version.name)

    def _follow(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                self.look()
                self.free_unused()
            except Exception:  # the thread must not end: nobody would follow any more
                logger.exception("following the aliases failed")

    def _lead(self, alias: str, wanted: ServedVersion) -> None:
        """Have a version answer for an alias, loaded if it is not; keeps the present one where that fails."""
        present, failure = self._by_alias.get(alias), self._failures.get(alias)
        if present and present.version == wanted and not present.backend.is_broken:
            self._failures.pop(alias, None)
            return
        if failure and failure.version == wanted and time.monotonic() < failure.retry_at:
            return
        loaded = next((each for each in self._alive if each.version == wanted and not each.backend.is_broken), None)
        if loaded is None:
            try:
                loaded = Loaded(wanted, self._load(wanted))
            except Exception as error:
                self._fail(alias, wanted, error)
                return
        with self._lock:
            if loaded not in self._alive:
                self._alive.append(loaded)
            self._by_alias[alias] = loaded
            self._failures.pop(alias, None)
        logger.info("%s answers for %s", wanted.name, alias)

    def _fail(self, alias: str, wanted: ServedVersion, error: Exception) -> None:
        kind, reason = classify(error)
        with self._lock:
            self._failures[alias] = Failure(wanted, reason, time.monotonic() + RETRY_SECONDS)
        present = self._by_alias.get(alias)
        goes_on = f"; {present.version.name} goes on answering" if present else ""
        trace = error if kind == "bug" else None
        logger.warning("%s cannot be loaded: %s%s", wanted.name, reason, goes_on, exc_info=trace)

    def _lose(self, alias: str) -> None:
        """Deal with an alias that has been deleted: the first one keeps its version, another is given up."""
        if alias == self.aliases[0]:
            if alias not in self._failures:
                version = self._by_alias[alias].version
                reason = f"no version has the alias {alias} any more"
                with self._lock:
                    self._failures[alias] = Failure(version, reason, 0.0)
                logger.warning("%s; %s goes on answering", reason, version.name)
            return
        with self._lock:
            lost = self._by_alias.pop(alias)
        logger.warning("no version has the alias %s any more: %s is given up", alias, lost.version.name)
