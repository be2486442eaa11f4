"""The walk along DVC's plan: a process of DVC's for a stage that is stale, and none for one that is up to date."""

import logging
import sys
import threading
from queue import Empty, SimpleQueue

from flows.figures import headline_figure
from flows.reproduce import StageRun, reproduce
from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.graph import GraphStatus, graph_status
from tasks.registry.dvc_outputs.remote import default_remote, fetch, fetchable
from tasks.stage import FAILURE_FILE

ANSWER_SECONDS = 30.0  # for a remote to say what it has
logger = logging.getLogger(__name__)


class Walk:
    """The stages of the plan in order, each brought up to date."""

    def __init__(self, graph: GraphStatus, *, pull: bool = False) -> None:
        """Begin with what DVC says of the stages now; what failed before is over.

        Args:
            graph: what DVC says.
            pull: whether results that DVC's default remote has are fetched.
        """
        FAILURE_FILE.unlink(missing_ok=True)
        self.plan = list(graph.changes)
        self._stale = set(graph.stale)
        self._pull = pull
        self._has_written = False  # since DVC was last asked

    def bring_up_to_date(self, stage: str) -> StageRun:
        """Run a stage, or restore its outputs, where it is stale.

        Raises:
            InputError: the stage says that its input must be fixed, or the remote cannot be asked.
            StageError: it failed for another reason.
        """
        if stage not in self._stale and self._has_written:
            self._stale, self._has_written = set(graph_status().stale), False
        if stage not in self._stale:
            return StageRun(stage, "reused", 0.0, headline_figure(stage))
        self._has_written = True
        if self._pull and fetch(stage):
            sys.stderr.write(f"trueline: {stage} is fetched from DVC's remote\n")
        return reproduce(stage)


def name_what_can_be_fetched(graph: GraphStatus) -> None:
    """Say, before anything is computed, which results could be fetched from DVC's default remote, if there is one."""
    if not graph.stale or default_remote() is None:
        return
    answer: SimpleQueue[list[str] | Exception] = SimpleQueue()

    def ask() -> None:
        try:
            answer.put(fetchable(graph.unfinished))
        except Exception as error:
            answer.put(error)

    # A thread that still waits for the remote ends with the process.
    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=ANSWER_SECONDS)
    except Empty:
        found = InputError(f"DVC's remote has not answered for {ANSWER_SECONDS:.0f} seconds")
    if isinstance(found, InputError):
        logger.warning("%s; the run goes on without it", found)
    elif isinstance(found, Exception):
        raise found
    elif found:
        message = f"DVC's remote has {', '.join(found)}: trueline run --pull fetches instead of computing again"
        sys.stderr.write(f"trueline: {message}\n")
