"""What DVC's default remote has is fetched, and not computed again; a run goes on without a remote that is away."""

import logging
import sys
import threading
from queue import Empty, SimpleQueue

from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.graph import GraphStatus
from tasks.registry.dvc_outputs.remote import RemoteError, check_default_remote, default_remote, fetch, fetchable

ANSWER_SECONDS = 30.0  # for a remote to tell what it has
logger = logging.getLogger(__name__)


class Fetching:
    """The default remote, as long as it answers."""

    def __init__(self, graph: GraphStatus, *, pull: bool | None = None) -> None:
        """Ask the remote what it has, and report it; where no stage is stale it is not asked.

        Args:
            graph: what DVC says of the stages.
            pull: True demands a remote that answers, False does without; None asks one if there is one.

        Raises:
            InputError: a remote is demanded, and there is none or it does not answer.
        """
        self._is_demanded = pull is True
        if self._is_demanded:
            check_default_remote()
        self._answers = pull is not False and bool(graph.stale) and default_remote() is not None
        if self._answers:
            try:
                found = _listed(graph.unfinished)
            except InputError as error:
                self._do_without(error)
            else:
                _report(found)

    def fetch(self, stage: str) -> bool:
        """Bring a stage's result into DVC's cache; returns whether the remote had it, and the cache did not.

        Raises:
            RemoteError: a remote is demanded, and does not answer any more.
        """
        if not self._answers:
            return False
        try:
            found = fetch(stage)
        except RemoteError as error:
            self._do_without(error)
            return False
        if found:
            sys.stderr.write(f"trueline: {stage} is fetched from DVC's remote\n")
        return found

    def _do_without(self, error: InputError) -> None:
        if self._is_demanded:
            raise error
        self._answers = False
        logger.warning("%s; the run goes on without it", error)


def _report(found: list[str]) -> None:
    if found:
        sys.stderr.write(f"trueline: DVC's remote has {', '.join(found)}: fetched, not computed again\n")


def _listed(stages: list[str]) -> list[str]:
    """Ask the remote which results it has, for a limited time.

    Raises:
        InputError: it cannot be asked, or does not answer in time.
    """
    answer: SimpleQueue[list[str] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put(fetchable(stages))
        except Exception as error:
            answer.put(error)

    # A thread that still waits for the remote ends with the process.
    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=ANSWER_SECONDS)
    except Empty:
        raise RemoteError(f"DVC's remote has not answered for {ANSWER_SECONDS:.0f} seconds") from None
    if isinstance(found, Exception):
        raise found
    return found
