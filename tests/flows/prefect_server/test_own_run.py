"""What a flow does about its own run; tests/services/test_runs_that_end.py does it with a real server."""

import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelling, Crashed, Running

from flows.prefect_server import own_run as module
from flows.prefect_server.own_run import CancelledOnServerError, own_run, tell
from flows.processes import interrupts
from tasks.registry.mlflow_runs.tracking import FLOW_RUN


class Server:
    """Stands in for the Prefect server and its client."""

    def __init__(self) -> None:
        self.state: Any = Running()
        self.is_away = False
        self.asked = threading.Event()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def read_flow_run(self, _run: object) -> Any:
        self.asked.set()
        if self.is_away:
            raise httpx.ConnectError("nobody there")
        return SimpleNamespace(state=self.state)

    def set_flow_run_state(self, _run: object, state: Any, force: bool) -> None:
        assert force
        self.state = state


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A flow run in this process, whose signal Prefect turns into its exception."""

    def handle(number: int, _frame: object) -> None:
        raise TerminationSignal(number)

    server = Server()
    monkeypatch.setattr(module, "get_client", lambda sync_client: server)
    monkeypatch.setattr(module, "is_ready", lambda _url: not server.is_away)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(uuid4()))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    earlier = signal.signal(signal.SIGTERM, handle)
    yield server
    signal.signal(signal.SIGTERM, earlier)


def wait() -> None:
    threading.Event().wait(20)
    raise AssertionError("nothing has ended this block")


@pytest.mark.parametrize("was_away", [False, True])
def test_a_run_that_is_cancelled_ends(server: Server, was_away: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def cancel() -> None:
        server.is_away = was_away
        server.asked.clear()
        server.asked.wait(5)
        server.is_away, server.state = False, Cancelling()

    threading.Thread(target=cancel).start()
    with pytest.raises(CancelledOnServerError), own_run():
        wait()

    assert FLOW_RUN not in os.environ
    assert signal.getsignal(signal.SIGTERM).__name__ == "handle"  # type: ignore[union-attr]


def test_the_runner_s_own_signal_is_left_to_prefect_and_a_second_one_disturbs_no_end(server: Server) -> None:
    ended = []
    with pytest.raises(TerminationSignal), own_run():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            server.state = Cancelling()
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(0.3)  # in which stages end
            ended.append(True)

    assert ended


def test_a_second_signal_to_a_command_ends_it_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's own handler would raise its exception once more, where reporting it to a server may take minutes."""
    ended: list[int] = []
    monkeypatch.setattr(interrupts, "_end_process", ended.append)
    monkeypatch.setattr(interrupts, "SAME_REQUEST_SECONDS", 0.0)
    monkeypatch.setattr(interrupts._Ending, "_limit", lambda _ending: None)  # it would end the tests
    prefect_s = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminationSignal), interrupts.report_interruption(lambda: True):
        signal.signal(signal.SIGTERM, prefect_s)
        try:
            with own_run():
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    assert ended == [143]


def test_a_run_that_lives_is_running_again(server: Server) -> None:
    with own_run():
        server.state = Crashed()
        while server.state.is_crashed():
            threading.Event().wait(0.05)

    assert server.state.is_running()


def test_what_the_server_missed_is_told_at_the_end(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[str] = []

    def link() -> None:
        if server.is_away:
            raise httpx.ConnectError("nobody there")
        sent.append("link")

    with own_run():
        server.is_away = True
        tell(link)
        assert sent == []
        threading.Timer(0.5, lambda: setattr(server, "is_away", False)).start()

    assert sent == ["link"]
    assert "the run has ended, and waits to say so: no Prefect server answers at http" in capsys.readouterr().err


def test_without_a_server_that_stays_nothing_is_watched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUELINE_OWN_PREFECT_SERVER", "http://127.0.0.1:9/api")
    server.state = Cancelling()
    with own_run():
        threading.Event().wait(0.2)

    assert not server.asked.is_set()
