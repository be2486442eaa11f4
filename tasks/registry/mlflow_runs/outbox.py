"""What a stage tells MLflow, sent in order by a thread of its own: a server that hangs never holds training up.

What the server has not taken when the stage ends is kept in a file, and sent by the next command that links runs.
"""

import json
import logging
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tasks.common.files import STATE, replacing
from tasks.common.safe_text import without_secrets
from tasks.registry.mlflow_runs.store import Store, is_passing, main_checkout

Status = Literal["FINISHED", "FAILED", "KILLED"]
SEND_EVERY_SECONDS, SEND_EVERY_ROWS = 2.0, 200
RETRY_AFTER_SECONDS = 60.0  # a server that has gone away
VALUES_PER_REQUEST = 1000  # MLflow's limit
UNSENT = STATE / "unsent"

logger = logging.getLogger(__name__)


class Message(NamedTuple):
    """One thing told of a run, as plain data that a file can keep."""

    kind: Literal["metrics", "table", "model", "inputs", "end"]
    content: Any


def deliver(store: Store, run_id: str, message: Message) -> None:
    """Tell MLflow; telling it twice is telling it once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

    client, content = store.client, message.content
    if message.kind == "metrics":
        client.log_batch(run_id, metrics=[Metric(*value) for value in content])
    elif message.kind == "inputs":
        tags = [InputTag("mlflow.data.context", "training")]
        client.log_inputs(run_id, [DatasetInput(Dataset(**dataset), tags) for dataset in content])
    elif message.kind == "table":
        file = f"{content['name']}.json"
        if not any(kept.path == file for kept in client.list_artifacts(run_id)):  # MLflow would add the rows again
            client.log_table(run_id, content["columns"], file)
    elif message.kind == "model":
        if "model_id" not in client.get_run(run_id).data.tags:
            _deliver_model(store, run_id, **content)
    else:
        client.set_terminated(run_id, content["status"], content["end_time"])


def log_model(store: Store, folder: Path, md5: str | None, key: str | None, run_id: str | None = None) -> str:
    """Make a logged model that points at what DVC holds, as the output of a run where there is one; give its id."""
    from mlflow.entities import LoggedModelOutput

    known = {"mlflow.model.isExternal": "true", "path": folder.as_posix(), "key": key, "md5": md5}
    tags = {name: value for name, value in known.items() if value}
    model = store.client.create_logged_model(store.experiment_id, name=folder.name, source_run_id=run_id, tags=tags)
    store.client.finalize_logged_model(model.model_id, "READY")
    if run_id:
        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_id)


class Outbox:
    """Messages on a run that wait to be sent."""

    def __init__(self, store: Store, run_id: str, stage: str, *, by_thread: bool = True) -> None:
        """Begin without any.

        Args:
            store: where to.
            run_id: what they are about.
            stage: whose run that is.
            by_thread: whether they are sent by themselves; else `send_all` does.
        """
        self._by_thread = by_thread
        self.fault: Exception | None = None  # a message that was wrong
        self.is_away = False  # the server did not answer when last asked
        self._store, self._run_id, self._stage = store, run_id, stage
        self._waiting: deque[Message] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._last = time.monotonic()  # when something was last sent, or tried
        self._is_urgent = False

    def put(self, message: Message) -> None:
        """Have a message sent after all before it; returns at once."""
        with self._changed:
            self._waiting.append(message)
            if self._thread is None and self._by_thread:
                self._thread = threading.Thread(target=self._work, daemon=True, name="MLflow")
                self._thread.start()
            self._changed.notify_all()

    def flush(self, patience: float, most: float | None = None) -> bool:
        """Wait until all is sent; no longer than `most` seconds, nor than `patience` since something went out."""
        began = moved = time.monotonic()
        with self._changed:
            self._is_urgent, left = True, len(self._waiting)
            self._changed.notify_all()
            while self._waiting:
                self._changed.wait(0.05)
                now = time.monotonic()
                moved, left = (now, len(self._waiting)) if len(self._waiting) < left else (moved, left)
                if now - moved > patience or (most is not None and now - began > most):
                    break
            self._is_urgent = False
            return not self._waiting

    def send_all(self) -> None:
        """Send everything by this thread.

        Raises:
            MlflowException: MLflow is away, or a message is wrong.
        """
        send(self._store, self._run_id, self._waiting)

    def take_back(self) -> list[Message]:
        """Give what has not been sent, and send it no more."""
        with self._changed:
            left = list(self._waiting)
            self._waiting.clear()
            return left

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._is_due():
                    self._changed.wait(0.1 if self._waiting else None)
                message, number = next_message(self._waiting)
            self._send(message, number)

    def _is_due(self) -> bool:
        if not self._waiting:
            return False
        if self._is_urgent and not self.is_away:
            return True
        waited = time.monotonic() - self._last
        if self.is_away:
            return waited >= (min(1.0, RETRY_AFTER_SECONDS) if self._is_urgent else RETRY_AFTER_SECONDS)
        has_other = any(message.kind != "metrics" for message in self._waiting)
        return has_other or len(self._waiting) >= SEND_EVERY_ROWS or waited >= SEND_EVERY_SECONDS

    def _send(self, message: Message, number: int) -> None:
        from mlflow.exceptions import MlflowException

        is_taken = True
        try:
            deliver(self._store, self._run_id, message)
            self.is_away = False
        except Exception as error:
            # What is no answer of MLflow's is the connection, or the disk that a server in this folder writes to.
            is_taken = not (is_passing(error) if isinstance(error, MlflowException) else isinstance(error, OSError))
            if is_taken:
                self.fault = self.fault or error
            elif not self.is_away:
                logger.warning("MLflow does not answer; %s goes on, its metrics wait", self._stage)
            self.is_away = not is_taken
        with self._changed:
            self._last = time.monotonic()
            for _ in range(min(number, len(self._waiting)) if is_taken else 0):  # none where they were taken back
                self._waiting.popleft()
            self._changed.notify_all()


def next_message(waiting: deque[Message]) -> tuple[Message, int]:
    """Give the first message, or as many of metrics in one as MLflow takes at once, and how many these are."""
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
    """Send messages in order, and take off each that is sent.

    Raises:
        MlflowException: MLflow is away, or a message is wrong.
    """
    while waiting:
        message, number = next_message(waiting)
        deliver(store, run_id, message)
        for _ in range(number):
            waiting.popleft()


def keep(store: Store, run_id: str, messages: list[Message]) -> None:
    """Keep in a file what was not sent."""
    path = main_checkout() / UNSENT / f"{run_id}.jsonl"
    rows = [{"server": without_secrets(store.uri)}, *(message._asdict() for message in messages)]
    try:
        with replacing(path) as draft:
            draft.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    except OSError as error:  # of a finished run metrics and curve are in DVC's outputs, too
        logger.warning("what MLflow did not get of run %s is lost: %s (%s)", run_id, path, error.strerror)


def send_kept(store: Store) -> None:
    """Send what earlier stages could not, to the server that it was for."""
    from mlflow.exceptions import MlflowException

    for path in sorted((main_checkout() / UNSENT).glob("*.jsonl")):
        try:
            first, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            server, waiting = first["server"], deque(Message(**row) for row in rows)
        except (ValueError, KeyError, TypeError):
            aside = path.rename(path.with_suffix(".damaged"))
            logger.warning("what was kept for MLflow of run %s is damaged and not sent: see %s", path.stem, aside)
            continue
        if server != without_secrets(store.uri):
            continue
        try:
            send(store, path.stem, waiting)
        except MlflowException as error:
            if is_passing(error):
                raise
            logger.warning("MLflow does not take what was kept of run %s (%s): it is dropped", path.stem, error)
        path.unlink()


def _deliver_model(store: Store, run_id: str, folder: str, md5: str | None, key: str | None) -> None:
    model_id = log_model(store, Path(folder), md5, key, run_id)
    store.client.set_tag(run_id, "model_id", model_id)
    if md5:
        store.client.set_tag(run_id, "outputs", json.dumps({folder: md5}))
