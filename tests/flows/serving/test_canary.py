"""A canary's share is sticky, its figures are its own, and thumbs become ratings."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.serving.canary import Canary, parse_canary
from flows.serving.figures import Figures, is_refusal, quantile
from tasks.common.errors import InputError
from tasks.common.files import PREPARED
from tasks.prepare import prepare
from tasks.settings.data import NO_ROWS
from tests.conftest import MakeParams, records_of, rows_from
from tests.flows.serving.conftest import Parrots, Serve
from tests.flows.serving.running import Aliases, Running, version
from tests.flows.serving.test_following import until

CANARY = Canary("challenger", 25.0)


def test_the_share_is_sticky_and_as_large_as_wanted() -> None:
    takes = [CANARY.takes(f"user {number}") for number in range(4000)]

    assert sum(takes) == pytest.approx(1000, abs=110)  # four standard deviations: sqrt(4000 * .25 * .75) = 27
    assert takes == [CANARY.takes(f"user {number}") for number in range(4000)]
    assert [number for number in range(8) if CANARY.takes(f"user {number}")] == [3, 5]  # after a restart, too
    assert all(Canary("challenger", 100.0).takes(f"user {number}") for number in range(100))


@pytest.mark.parametrize("text", ["challenger", "challenger:0", "challenger:101", ":10", "challenger:x", "champion:5"])
def test_a_canary_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(InputError, match=f"--canary {text} "):
        parse_canary(text, "champion")
    assert parse_canary("challenger:2.5", "champion") == Canary("challenger", 2.5)


def versions_of(server: Running, **fields: Any) -> list[str]:
    return [server.chat(f"hello {number}", **fields).json()["model"] for number in range(12)]


def test_who_is_asked_follows_user_key_or_conversation(serve: Serve) -> None:
    server = serve(canary=CANARY)
    by_text = versions_of(server)

    assert set(by_text) == {"trueline-policy/1", "trueline-policy/2"}
    assert versions_of(server) == by_text
    assert len(set(versions_of(server, user="ann"))) == 1
    assert set(versions_of(server, model="challenger")) == {"trueline-policy/2"}
    longer = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello 0"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "more"},
    ]
    assert server.chat(messages=longer).json()["model"] == by_text[0]


def test_without_a_challenger_the_champion_answers_all(serve: Serve, aliases: Aliases) -> None:
    del aliases.aliases["challenger"]
    server = serve(canary=CANARY)
    assert set(versions_of(server)) == {"trueline-policy/1"}

    aliases.aliases["challenger"] = 2
    until(lambda: "challenger" in server.client.get("/ready").json()["versions"])
    assert set(versions_of(server)) == {"trueline-policy/1", "trueline-policy/2"}
    del aliases.aliases["challenger"]
    with server.versions.use(["challenger", "champion"]) as either:  # whether or not it has been seen yet
        assert either.version in (version(1), version(2))
    until(lambda: "challenger" not in server.client.get("/ready").json()["versions"])
    assert set(versions_of(server)) == {"trueline-policy/1"}


def test_a_challenger_that_cannot_be_loaded_takes_nothing(serve: Serve, parrots: Parrots) -> None:
    parrots.broken.add("trueline-policy/2")
    assert set(versions_of(serve(canary=CANARY))) == {"trueline-policy/1"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I cannot help with that.", True),
        ("I’m sorry, but no.", True),  # noqa: RUF001
        ("As an AI I have no opinion.", True),
        (" \n", True),
        ("We refund it today.", False),
        ("The package cannot be returned.", False),
        (f"{'word ' * 50} I cannot say more.", False),
    ],
)
def test_the_rule_of_refusals(answer: str, expected: bool) -> None:
    assert is_refusal(answer) == expected


def test_the_figures_of_a_version() -> None:
    figures = Figures()
    assert figures.summary() == {"requests": 0, "errors": 0, "thumbs_up": 0, "thumbs_down": 0}
    for seconds in (1.0, 2.0, 3.0, 4.0):
        figures.add_request(seconds, seconds / 10, [("yes", 3), ("I cannot", 5)])
    figures.add_error()
    figures.add_thumb("up", None)
    figures.add_thumb("down", None)
    figures.add_thumb("up", "down")

    assert figures.summary() == {
        "requests": 4,
        "errors": 1,
        "thumbs_up": 2,
        "thumbs_down": 0,
        "seconds_p50": 2.0,
        "seconds_p95": 4.0,
        "seconds_p99": 4.0,
        "first_token_seconds_p50": 0.2,
        "answer_tokens": 4.0,
        "refusals": 0.5,
    }
    assert quantile([5.0], 0.5) == 5.0


def thumb(server: Running, response: Any, thumb: str, **fields: Any) -> Any:
    return server.client.post("/v1/feedback", json={"response_id": response.json()["id"], "thumb": thumb, **fields})


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def test_thumbs_become_rows_and_a_changed_one_replaces_the_first(serve: Serve, tmp_path: Path) -> None:
    server = serve(canary=CANARY)
    answers = [server.chat("one"), server.chat("two", n=2)]
    assert thumb(server, answers[0], "up", comment="fine").json()["model"] == answers[0].json()["model"]
    thumb(server, answers[1], "up", choice=1)
    thumb(server, answers[1], "down", choice=1)

    first, second = rows(tmp_path / "feedback")
    assert first | {"time": ""} == {
        "prompt": [{"role": "user", "content": "one"}],
        "completion": answers[0].json()["choices"][0]["message"]["content"],
        "label": True,
        "comment": "fine",
        "version": answers[0].json()["model"],
        "response_id": answers[0].json()["id"],
        "choice": 0,
        "time": "",
    }
    assert (second["label"], second["choice"]) == (False, 1)
    for status, response in (
        (404, server.client.post("/v1/feedback", json={"response_id": "chatcmpl-0", "thumb": "up"})),
        (404, thumb(server, answers[0], "up", choice=1)),
        (400, thumb(server, answers[0], "sideways")),
    ):
        assert (response.status_code, response.json()["error"].keys()) == (status, {"message", "type", "param", "code"})
    assert len(rows(tmp_path / "feedback")) == 2


def test_thumbs_are_a_source_of_ratings(
    serve: Serve, make_params: MakeParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()
    server = serve()
    for number in range(40):  # as many as every split needs
        thumb(server, server.chat(f"question {number}"), "up" if number % 2 else "down", comment="fine")
    lines = [json.dumps({"prompt": f"q {number}", "response": "a"}) for number in range(40)]
    Path("others.jsonl").write_text("\n".join(lines))
    Path("pairs.jsonl").write_text(
        "\n".join(line.replace("response", "chosen")[:-1] + ', "rejected": "b"}' for line in lines)
    )
    kinds = {kind: rows_from(kind, "others.jsonl") for kind in ("demonstrations", "prompts")}
    kinds |= {"preferences": rows_from("preferences", "pairs.jsonl"), "ratings": rows_from("ratings", "feedback")}
    prepare(make_params(prepare={**kinds, "ai_preferences": rows_from("ai_preferences", NO_ROWS)}))

    ratings = {row.prompt[0]["content"]: row for row in records_of(PREPARED, "ratings")}
    assert len(ratings) == 40
    assert (ratings["question 3"].response, ratings["question 3"].desirable) == ("trueline-policy/1 question 3", True)
    assert not ratings["question 4"].desirable


def test_others_cannot_rate_an_answer(serve: Serve, tmp_path: Path) -> None:
    server = serve(keys={"ann": "a-key-of-sixteen-characters", "ben": "another-key-of-ben-here"})
    anns, bens = (
        {"Authorization": f"Bearer {key}"} for key in ("a-key-of-sixteen-characters", "another-key-of-ben-here")
    )
    answer = server.chat(headers=anns).json()
    statuses = [
        server.client.post(
            "/v1/feedback", json={"response_id": answer["id"], "thumb": "up"}, headers=headers
        ).status_code
        for headers in (bens, {}, anns)
    ]

    assert statuses == [404, 401, 200]
    assert len(rows(tmp_path / "feedback")) == 1
