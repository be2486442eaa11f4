"""The queue of messages to MLflow, sent in order by a thread of its own: a server that hangs never delays training.

Messages that the server has not taken when the stage ends are saved in a file. The next command that links runs sends
them.
"""

import json
import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tasks.common.files import STATE, replacing
from tasks.common.safe_text import without_secrets
from tasks.registry.mlflow_runs.store import Store, is_transient, main_checkout

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

Status = Literal["FINISHED", "FAILED", "KILLED"]
SEND_EVERY_SECONDS, SEND_EVERY_ROWS = 2.0, 200
RETRY_AFTER_SECONDS = 60.0  # a server that has gone away
VALUES_PER_REQUEST = 1000  # MLflow's limit
UNSENT = STATE / "unsent"

logger = logging.getLogger(__name__)


class Message(NamedTuple):
    """Something to log for a run, as plain data that can be saved in a file."""

    kind: Literal["metrics", "table", "model", "inputs", "end"]
    content: Any


def send_message(store: Store, run_id: str, message: Message) -> None:
    """Send a message to MLflow; sending it twice has no further effect."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

    client, content = store.client, message.content
    if message.kind == "metrics":
        client.log_batch(run_id, metrics=[Metric(*value) for value in content])
    elif message.kind == "inputs":
        tags = [InputTag("mlflow.data.context", "training")]
        log_inputs(client, run_id, [DatasetInput(Dataset(**dataset), tags) for dataset in content])
    elif message.kind == "table":
        file = f"{content['name']}.json"
        if not any(stored.path == file for stored in client.list_artifacts(run_id)):  # MLflow would append
            client.log_table(run_id, content["columns"], file)
    elif message.kind == "model":
        if "model_id" not in client.get_run(run_id).data.tags:
            _send_model(store, run_id, **content)
    else:
        client.set_terminated(run_id, content["status"], content["end_time"])


def log_inputs(client: "MlflowClient", run_id: str, inputs: "list[DatasetInput]") -> None:
    """Log the data sets of a run.

    MLflow looks for a data set and then stores it: if another run stores the same one in between, its database refuses.
    At the second try MLflow finds it.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.log_inputs(run_id, inputs)
    except MlflowException as error:
        if "unique constraint" not in str(error).lower():  # in the words of SQLite, PostgreSQL and others
            raise
        client.log_inputs(run_id, inputs)


def log_model(store: Store, folder: Path, md5: str | None, key: str | None, run_id: str | None = None) -> str:
    """Create a logged model that points at a model in DVC, as an output of a run if one is given; return its id."""
    from mlflow.entities import LoggedModelOutput

    known = {"mlflow.model.isExternal": "true", "path": folder.as_posix(), "key": key, "md5": md5}
    tags = {name: value for name, value in known.items() if value}
    model = store.client.create_logged_model(store.experiment_id, name=folder.name, source_run_id=run_id, tags=tags)
    store.client.finalize_logged_model(model.model_id, "READY")
    if run_id:
        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


class SendQueue:
    """Messages about a run that are waiting to be sent."""

    def __init__(self, store: Store, run_id: str, stage: str, *, by_thread: bool = True) -> None:
        """Set up an empty queue.

        Args:
            store: where to send.
            run_id: the run.
            stage: the stage of the run.
            by_thread: whether a thread sends; if not, `send_all` does.
        """
        self._by_thread = by_thread
        self.fault: Exception | None = None  # of the first message that MLflow refused
        self.is_unreachable = False  # the server did not answer the last request
        self._store, self._run_id, self._stage = store, run_id, stage
        self._waiting: deque[Message] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._last = time.monotonic()  # of the last attempt to send
        self._is_urgent = False

    def put(self, message: Message) -> None:
        """Add a message; returns at once."""
        with self._changed:
            self._waiting.append(message)
            if self._thread is None and self._by_thread:
                self._thread = threading.Thread(target=self._work, daemon=True, name="MLflow")
                self._thread.start()
            self._changed.notify_all()

    def flush(self, patience: float, longest: float | None = None) -> bool:
        """Wait for an empty queue: at most `longest` seconds, and at most `patience` since the last message sent."""
        began = moved = time.monotonic()
        with self._changed:
            self._is_urgent, left = True, len(self._waiting)
            self._changed.notify_all()
            while self._waiting:
                self._changed.wait(0.05)
                now = time.monotonic()
                moved, left = (now, len(self._waiting)) if len(self._waiting) < left else (moved, left)
                if now - moved > patience or (longest is not None and now - began > longest):
                    break
            self._is_urgent = False
            return not self._waiting

    def send_all(self) -> None:
        """Send everything from this thread.

        Raises:
            MlflowException: MLflow cannot be reached, or it refuses a message.
        """
        send(self._store, self._run_id, self._waiting)

    def drain(self) -> list[Message]:
        """Empty the queue and return the messages that were not sent."""
        with self._changed:
            left = list(self._waiting)
            self._waiting.clear()
            return left

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._is_due():
                    self._changed.wait(0.1 if self._waiting else None)
                message, number = next_batch(self._waiting)
            self._send(message, number)

    def _is_due(self) -> bool:
        if not self._waiting:
            return False
        if self._is_urgent and not self.is_unreachable:
            return True
        waited = time.monotonic() - self._last
        if self.is_unreachable:
            return waited >= (min(1.0, RETRY_AFTER_SECONDS) if self._is_urgent else RETRY_AFTER_SECONDS)
        has_other = any(message.kind != "metrics" for message in self._waiting)
        return has_other or len(self._waiting) >= SEND_EVERY_ROWS or waited >= SEND_EVERY_SECONDS

    def _send(self, message: Message, number: int) -> None:
        from mlflow.exceptions import MlflowException

        is_done = True
        try:
            send_message(self._store, self._run_id, message)
            self.is_unreachable = False
        except Exception as error:
            # Without an answer of MLflow it is the connection, or the disk that a server in this folder writes to.
            is_done = not (is_transient(error) if isinstance(error, MlflowException) else isinstance(error, OSError))
            if is_done:
                self.fault = self.fault or error
            elif not self.is_unreachable:
                logger.warning("MLflow does not answer; %s continues, and its metrics are sent later", self._stage)
            self.is_unreachable = not is_done
        with self._changed:
            self._last = time.monotonic()
            for _ in range(min(number, len(self._waiting)) if is_done else 0):  # none if the queue was drained
                self._waiting.popleft()
            self._changed.notify_all()


def next_batch(waiting: deque[Message]) -> tuple[Message, int]:
    """Return the first message, with as many messages of metrics merged as MLflow takes at once, and their number."""
    first, number = waiting[0], 0
    values: list[Any] = []
    if first.kind != "metrics":
        return first, 1
    for message in waiting:
        if message.kind != "metrics" or (number and len(values) + len(message.content) > VALUES_PER_REQUEST):
            break
        values += message.content
        number += 1
    return Message("metrics", values), number


def send(store: Store, run_id: str, waiting: deque[Message]) -> None:
    """Send messages in order, and remove each one sent.

    Raises:
        MlflowException: MLflow cannot be reached, or it refuses a message.
    """
    while waiting:
        message, number = next_batch(waiting)
        send_message(store, run_id, message)
        for _ in range(number):
            waiting.popleft()


def save_unsent(store: Store, run_id: str, messages: list[Message]) -> None:
    """Save messages that were not sent in a file."""
    path = main_checkout() / UNSENT / f"{run_id}.jsonl"
    rows = [{"server": without_secrets(store.uri)}, *(message._asdict() for message in messages)]
    try:
        with replacing(path) as draft:
            draft.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    except OSError as error:  # metrics and curve of a finished run are in DVC's outputs, too
        logger.warning("unsent messages of run %s to MLflow are lost: %s (%s)", run_id, path, error.strerror)


def send_saved(store: Store) -> None:
    """Send the messages that earlier stages saved, each to the server it was meant for."""
    from mlflow.exceptions import MlflowException

    for path in sorted((main_checkout() / UNSENT).glob("*.jsonl")):
        try:
            first, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            server, waiting = first["server"], deque(Message(**row) for row in rows)
        except (ValueError, KeyError, TypeError):
            aside = path.rename(path.with_suffix(".damaged"))
            logger.warning("the saved messages of run %s to MLflow are damaged and not sent: see %s", path.stem, aside)
            continue
        if server != without_secrets(store.uri):
            continue
        try:
            send(store, path.stem, waiting)
        except MlflowException as error:
            if is_transient(error):
                raise
            logger.warning("MLflow refuses the saved messages of run %s (%s): they are dropped", path.stem, error)
        path.unlink()


def _send_model(store: Store, run_id: str, folder: str, md5: str | None, key: str | None) -> None:
    model_id = log_model(store, Path(folder), md5, key, run_id)
    store.client.set_tag(run_id, "model_id", model_id)
    if md5:
        store.client.set_tag(run_id, "outputs", json.dumps({folder: md5}))
