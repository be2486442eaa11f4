"""The server follows the alias: no request is lost, and what cannot be loaded changes nothing."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows.serving import versions as versions_module
from tasks.common.errors import InputError
from tests.flows.serving.conftest import Parrots, Serve
from tests.flows.serving.running import Aliases, Running


def until(is_true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def who(server: Running) -> str:
    return str(server.chat().json()["model"])


def served(server: Running) -> dict[str, str]:
    found: dict[str, str] = server.client.get("/ready").json()["versions"]
    return found


def test_a_moved_alias_is_followed_and_back(serve: Serve, parrots: Parrots, aliases: Aliases) -> None:
    server = serve()
    assert who(server) == "trueline-policy/1"

    aliases.aliases["champion"] = 2
    until(lambda: served(server)["champion"] == "trueline-policy/2")
    assert who(server) == "trueline-policy/2"
    until(lambda: parrots.loaded["trueline-policy/1"].is_closed)

    aliases.aliases["champion"] = 1
    until(lambda: served(server)["champion"] == "trueline-policy/1")
    assert who(server) == "trueline-policy/1"
    assert parrots.times_loaded == 3


def test_a_request_under_way_ends_on_its_version(serve: Serve, parrots: Parrots, aliases: Aliases) -> None:
    server = serve()
    old = parrots.loaded["trueline-policy/1"]
    old.may_answer.clear()
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(server.chat, "early")
        streamed = pool.submit(server.chat, "streamed", stream=True)
        until(lambda: len(old.questions) == 2)
        aliases.aliases["champion"] = 2
        until(lambda: served(server)["champion"] == "trueline-policy/2")

        assert who(server) == "trueline-policy/2"
        assert not old.is_closed
        old.may_answer.set()
        assert early.result().json()["choices"][0]["message"]["content"] == "trueline-policy/1 early"
        assert "data: [DONE]" in streamed.result().text
    until(lambda: old.is_closed)


def test_a_version_that_comes_back_while_it_drains_is_not_loaded_again(
    serve: Serve, parrots: Parrots, aliases: Aliases
) -> None:
    server = serve()
    old = parrots.loaded["trueline-policy/1"]
    old.may_answer.clear()
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(server.chat, "early")
        until(lambda: len(old.questions) == 1)
        for number in (2, 1):
            aliases.aliases["champion"] = number
            until(lambda number=number: served(server)["champion"] == f"trueline-policy/{number}")  # type: ignore[misc]
        old.may_answer.set()
        assert early.result().status_code == 200

    assert who(server) == "trueline-policy/1"
    assert (parrots.times_loaded, old.is_closed) == (2, False)


def test_no_request_fails_while_the_alias_moves(serve: Serve, aliases: Aliases) -> None:
    server = serve()
    stop = threading.Event()

    def move() -> None:
        while not stop.wait(0.03):
            aliases.aliases["champion"] = 3 - aliases.aliases["champion"]

    mover = threading.Thread(target=move)
    mover.start()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: server.chat(str(number), stream=number % 3 == 0), range(300)))
    stop.set()
    mover.join()

    assert {answer.status_code for answer in answers} == {200}
    models = {answer.json()["model"] for number, answer in enumerate(answers) if number % 3}
    assert models == {"trueline-policy/1", "trueline-policy/2"}


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(
    serve: Serve, parrots: Parrots, aliases: Aliases, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(versions_module, "RETRY_SECONDS", 0.1)
    server = serve()
    parrots.broken.add("trueline-policy/2")
    aliases.aliases["champion"] = 2
    until(lambda: server.client.get("/ready").json()["status"] == "degraded")

    assert who(server) == "trueline-policy/1"
    ready = server.client.get("/ready")
    assert (ready.status_code, ready.json()["failed"].keys()) == (200, {"champion"})
    assert "trueline-policy/2: no space left on the disk of weights" in ready.json()["failed"]["champion"]
    assert 'trueline_serving_version_failed{alias="champion"} 1.0' in server.client.get("/metrics").text
    assert "trueline-policy/2 cannot be loaded" in caplog.text
    assert "trueline-policy/1 goes on answering" in caplog.text

    parrots.broken.clear()
    until(lambda: server.client.get("/ready").json()["status"] == "ok")
    assert who(server) == "trueline-policy/2"


def test_a_registry_that_is_away_changes_nothing(
    serve: Serve, aliases: Aliases, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    aliases.fault = InputError("MLflow cannot be reached")
    until(lambda: server.client.get("/ready").json()["registry"] == "does not answer")

    assert who(server) == "trueline-policy/1"
    assert "trueline_serving_registry_up 0.0" in server.client.get("/metrics").text
    assert caplog.text.count("MLflow cannot be reached; serving goes on with what is loaded") == 1

    aliases.fault, aliases.aliases["champion"] = None, 2
    until(lambda: served(server)["champion"] == "trueline-policy/2")
    assert "MLflow answers again" in caplog.text


def test_a_start_while_the_registry_is_away_serves_what_it_gave_last(
    serve: Serve, aliases: Aliases, caplog: pytest.LogCaptureFixture
) -> None:
    aliases.fault = InputError("MLflow cannot be reached")
    assert who(serve()) == "trueline-policy/1"
    assert "MLflow cannot be reached; what it last gave for champion is served" in caplog.text

    aliases.aliases = {}
    with pytest.raises(InputError, match="MLflow cannot be reached"):
        serve()


def test_a_version_that_breaks_is_loaded_again(serve: Serve, parrots: Parrots) -> None:
    server = serve()
    first = parrots.loaded["trueline-policy/1"]
    first.is_broken = True
    until(lambda: first.is_closed)

    assert who(server) == "trueline-policy/1"
    assert parrots.times_loaded == 2


def test_an_alias_that_is_deleted_keeps_its_version(serve: Serve, aliases: Aliases) -> None:
    server = serve()
    del aliases.aliases["champion"]
    until(lambda: server.client.get("/ready").json()["status"] == "degraded")

    assert "no version has the alias champion any more" in server.client.get("/ready").json()["failed"]["champion"]
    assert who(server) == "trueline-policy/1"


def test_a_server_may_wait_for_its_champion(serve: Serve, aliases: Aliases, parrots: Parrots) -> None:
    aliases.aliases = {}
    server = serve(wait=True)
    early, ready = server.chat(), server.client.get("/ready")
    assert (early.status_code, early.headers["Retry-After"]) == (503, "30")
    assert early.json()["error"]["message"] == "there is no champion yet: try again later"
    assert (ready.status_code, ready.json()["status"]) == (503, "waiting")
    assert server.client.get("/health").status_code == 200

    aliases.aliases = {"champion": 1}
    until(lambda: server.client.get("/ready").json()["status"] == "ok")
    assert who(server) == "trueline-policy/1"


def test_without_a_champion_nothing_is_served(serve: Serve, aliases: Aliases, parrots: Parrots) -> None:
    aliases.aliases = {}
    with pytest.raises(InputError, match="no version has the alias champion: run trueline run first"):
        serve()
    aliases.aliases = {"champion": 1}
    parrots.broken.add("trueline-policy/1")
    with pytest.raises(InputError, match="no space left on the disk of weights"):
        serve()
