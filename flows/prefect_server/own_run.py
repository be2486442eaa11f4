"""The flow's own run on the Prefect server, watched from inside.

Prefect's runner and worker look for cancellations from outside, and give up for good when the server is away for about
a minute. So the flow asks for the state of its run itself, as long as it lives: it ends when the run is cancelled,
corrects a server that takes it for dead, drops late runs that it covers, and waits with its result for a server that is
away.
"""

import contextvars
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.runtime import deployment, flow_run
from prefect.states import Running

from flows.prefect_server.address import is_ready
from flows.prefect_server.late_runs import cancel_late_runs
from flows.prefect_server.temporary_server import has_own_server
from flows.processes.interrupts import begin_to_end, end_at_once, is_ending
from tasks.registry.mlflow_runs.tracking import FLOW_RUN

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POLL_SECONDS = 10.0
WAIT_SECONDS = 24 * 3600.0  # for a server that is away when the run has ended
AWAY = (httpx.TransportError, PrefectHTTPStatusError)
logger = logging.getLogger(__name__)


class CancelledOnServerError(SystemExit):
    """The run was cancelled on the Prefect server: what it has started ends as at an interruption."""


class OwnRun:
    """The run of the flow in this process, as the Prefect server knows it."""

    def __init__(self, run_id: UUID, deployment_id: UUID | None) -> None:
        self.is_cancelled = False
        self._id, self._deployment_id = run_id, deployment_id
        self._began = datetime.now(UTC)
        self._is_signalled = self._is_away = False
        self._over = threading.Event()
        self._untold: list[Callable[[], object]] = []
        self._earlier = signal.getsignal(signal.SIGTERM)
        context = contextvars.copy_context()  # Prefect's settings, and so the address of its server
        self._thread = threading.Thread(target=context.run, args=(self._watch,), daemon=True)

    def begin(self) -> None:
        """Start to ask for the run's state."""
        self._thread.start()

    def end(self) -> None:
        """Stop asking."""
        self._over.set()
        if not is_ending():  # or the thread may wait for a server that is away
            self._thread.join(timeout=POLL_SECONDS)

    @contextmanager
    def first_signal_ends(self) -> Iterator[None]:
        """Let Prefect carry out the first SIGTERM in the block undisturbed by further ones."""
        signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            if not is_ending():  # it has yet to tell the server
                signal.signal(signal.SIGTERM, self._earlier)

    def tell(self, call: Callable[[], object]) -> None:
        """Send something to the server: at once, or when it is back."""
        try:
            call()
        except AWAY:
            self._untold.append(call)

    def await_server(self) -> None:
        """Wait until the server answers, and send what it has missed."""
        url, began = os.environ["PREFECT_API_URL"], time.monotonic()
        if not is_ready(url):
            sys.stderr.write(
                f"trueline: the run has ended, and waits to say so: no Prefect server answers at {url}. "
                "To end it is safe: the results are kept\n"
            )
        while not is_ready(url) and time.monotonic() - began < WAIT_SECONDS:
            time.sleep(POLL_SECONDS / 5)
        for call in self._untold:
            call()

    def _watch(self) -> None:
        with get_client(sync_client=True) as client:
            while not self._over.is_set():
                try:
                    self._look(client)
                    self._note_answer(True)
                except ObjectNotFound:
                    logger.debug("the page of this run has been deleted")
                except AWAY:
                    self._note_answer(False)
                self._over.wait(POLL_SECONDS)

    def _look(self, client: "SyncPrefectClient") -> None:
        state = client.read_flow_run(self._id).state
        if state and (state.is_cancelling() or state.is_cancelled()):
            self._cancel()
        elif state and state.is_crashed() and not self._over.is_set():
            client.set_flow_run_state(self._id, Running(message="It runs: its heartbeats were lost."), force=True)
        if self._deployment_id:
            cancel_late_runs(client, self._deployment_id, self._began)

    def _cancel(self) -> None:
        """End what runs, as SIGTERM does, unless the runner or the worker has asked for that already."""
        if not self._is_signalled and not self._over.is_set():
            self.is_cancelled = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _note_answer(self, answers: bool) -> None:
        if self._is_away == answers:
            self._is_away = not answers
            message = "answers again" if answers else "does not answer: the run goes on, and tells its result later"
            sys.stderr.write(f"trueline: the Prefect server {message}\n")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_signalled or is_ending():
            end_at_once()
            return
        self._is_signalled = True
        begin_to_end(number)
        if self.is_cancelled:
            raise CancelledOnServerError(128 + number)
        if callable(self._earlier):
            self._earlier(number, frame)


class _Current:
    run: OwnRun | None = None
    has_run = False


@contextmanager
def own_run() -> Iterator[None]:
    """Watch the run of this flow during a block; then wait for a server that is away.

    Without a server that stays, there is nothing to watch.

    Raises:
        CancelledOnServerError: the run was cancelled there.
    """
    _Current.has_run = True
    run_id, deployment_id = flow_run.id, deployment.id
    if run_id is None:
        yield
        return
    run = OwnRun(UUID(run_id), UUID(deployment_id) if deployment_id else None)
    with run.first_signal_ends():
        if has_own_server():
            yield
            return
        with _watched(run):
            yield


@contextmanager
def _watched(run: OwnRun) -> Iterator[None]:
    os.environ[FLOW_RUN] = str(flow_run.id)
    _Current.run = run
    run.begin()
    try:
        try:
            yield
        except Exception:  # not a signal, which wants an end soon
            run.await_server()
            raise
        run.await_server()
    finally:
        run.end()
        _Current.run = None
        del os.environ[FLOW_RUN]


def has_run_here() -> bool:
    """Return whether this process has run a flow, as Prefect's runners and workers have not."""
    return _Current.has_run


def tell(call: Callable[[], object]) -> None:
    """Send something to the Prefect server: at once, or after the flow's last step where it is away now."""
    if _Current.run:
        _Current.run.tell(call)
    else:
        call()
