"""Two machines' logs made one: no decision is lost, both ways give the same, and only what conflicts is reported."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.common.errors import InputError
from tasks.registry.promotion.merged_log import last_move, merge_logs

MODEL = "trueline-policy"
Log = list[dict[str, Any]]


def md5(content: int) -> str:
    return f"{content:032x}.dir"


def decision(
    name: str, minute: int, action: str, content: int, previous: int | None, version: int | None = None
) -> Any:
    """A line whose version has the number of its content, unless another is given."""
    record = {
        "policy": {"name": MODEL, "path": "models/ppo", "md5": md5(content)},
        "method": "ppo",
        "reward": {"md5": md5(99)},
        "data": {"md5": md5(98)},
        "gate": {},
        "opponent": {"version": None, "policy": None},
        "keys": {"align": "a", "reward": "r"},
    }
    policy = {"version": version or content, "reward_version": 1, "md5": md5(content), "record": record}
    return {
        "id": name,
        "time": f"2026-11-30T10:{minute:02}:00+00:00",
        "who": "ada",
        "action": action,
        "policy": policy,
        "previous": previous and {"version": previous, "reward_version": 1, "md5": md5(previous)},
        "reasons": ["a reason"],
        "gate": {},
        "review": None,
        "git_commit": None,
    }


def text(log: Log) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in log)


def ids(content: bytes) -> list[str]:
    return [json.loads(line)["id"] for line in content.splitlines()]


FIRST = decision("first", 0, "promote", 1, None)


def test_lines_of_both_stand_in_the_order_of_time() -> None:
    ours = [FIRST, decision("b", 2, "refuse", 2, 1), decision("d", 4, "promote", 4, 1)]
    theirs = [FIRST, decision("a", 1, "refuse", 3, 1), decision("c", 3, "hold", 5, 1)]
    merged = merge_logs(text(ours), text(theirs))
    assert ids(merged.content) == ["first", "a", "b", "c", "d"]
    assert (merged.new, merged.conflicts) == (2, [])


def test_a_clock_that_is_wrong_turns_no_log_round() -> None:
    ours = [FIRST, decision("hold", 30, "hold", 2, 1), decision("approved", 5, "promote", 2, 1)]
    merged = merge_logs(text(ours), text([FIRST, decision("b", 10, "refuse", 3, 1)]))
    assert ids(merged.content) == ["first", "b", "hold", "approved"]


def test_of_two_promotions_on_one_champion_the_registrys_counts_and_both_are_named() -> None:
    ours, theirs = [FIRST, decision("o", 1, "promote", 2, 1)], [FIRST, decision("t", 2, "promote", 3, 1)]
    for applied, winner in (("o", "o"), ("t", "t"), (None, "t"), ("unknown", "t")):
        merged = merge_logs(text(ours), text(theirs), applied)
        loser = {"o": "t", "t": "o"}[winner]
        assert ids(merged.content) == ["first", loser, winner]
        (conflict,) = merged.conflicts
        assert f"version 1: {loser} (promote of version" in conflict
        assert f", and {winner} (promote of version" in conflict
        move = last_move(merged.decisions, MODEL)
        assert move and move["id"] == winner
        again = merge_logs(merged.content, merged.content, applied)  # it is settled
        assert (again.content, again.conflicts) == (merged.content, [])


def test_what_git_made_of_both_is_put_in_order_by_the_registry() -> None:
    lines = [FIRST, decision("o", 1, "promote", 2, 1), decision("t", 2, "promote", 3, 1)]
    merged = merge_logs(text([*lines, lines[1]]), text(lines), "o")
    assert ids(merged.content) == ["first", "t", "o"]
    assert len(merged.conflicts) == 1


def test_one_number_for_two_models_is_told() -> None:
    ours, theirs = [FIRST, decision("o", 1, "refuse", 2, 1)], [FIRST, decision("t", 2, "refuse", 3, 1, version=2)]
    (conflict,) = merge_logs(text(ours), text(theirs)).conflicts
    assert conflict.startswith("version 2 of trueline-policy is not the same model in both logs")


def test_a_decision_that_somebody_edited_is_told() -> None:
    edited = {**FIRST, "reasons": ["another"]}
    (conflict,) = merge_logs(text([FIRST]), text([edited])).conflicts
    assert "decision first is not the same in both logs" in conflict
    with pytest.raises(InputError, match="row 2 is damaged"):
        merge_logs(text([FIRST]), text([FIRST]) + b"{}\n")


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[Log], dict[str, Any]]:
    """Machines that decide and pull from one another at random, by clocks that differ; each one's own log."""
    logs: list[Log] = [[FIRST], [FIRST], [FIRST]]
    made = {"first": FIRST}
    for number in range(draw(st.integers(1, 14))):
        machine, other = draw(st.permutations(range(3)))[:2]
        if draw(st.booleans()):
            logs[machine] = json_lines(merge_logs(text(logs[machine]), text(logs[other])).content)
            continue
        champion = next(row for row in reversed(logs[machine]) if row["action"] in ("promote", "rollback"))
        action = draw(st.sampled_from(["promote", "refuse", "hold"]))
        new = decision(f"d{number}", draw(st.integers(0, 59)), action, number + 2, champion["policy"]["version"])
        logs[machine] = [*logs[machine], new]
        made[new["id"]] = new
    return logs, made


def json_lines(content: bytes) -> Log:
    return [json.loads(line) for line in content.splitlines()]


@given(machines())
@settings(max_examples=150, deadline=None)
def test_no_decision_is_ever_lost(found: tuple[list[Log], dict[str, Any]]) -> None:
    logs, made = found
    one, other = (merge_logs(text(logs[0]), text(logs[1])), merge_logs(text(logs[1]), text(logs[0])))
    assert one.content == other.content
    both = json_lines(one.content)
    assert sorted(row["id"] for row in both) == sorted({row["id"] for log in logs[:2] for row in log})
    assert all(row == made[row["id"]] for row in both)
    again = merge_logs(one.content, text(logs[0]))
    assert again.content == one.content
    everything = merge_logs(one.content, text(logs[2]))
    assert {row["id"] for row in json_lines(everything.content)} == made.keys()


@given(st.lists(st.integers(0, 59), max_size=8), st.lists(st.integers(0, 59), max_size=8))
def test_each_machines_lines_stay_in_its_order(ours: list[int], theirs: list[int]) -> None:
    logs = [
        [FIRST, *(decision(f"{side}{n}", at, "refuse", 2, 1) for n, at in enumerate(times))]
        for side, times in (("o", ours), ("t", theirs))
    ]
    merged = ids(merge_logs(text(logs[0]), text(logs[1])).content)
    for log in logs:
        assert all(merged.index(a["id"]) < merged.index(b["id"]) for a, b in pairwise(log))
