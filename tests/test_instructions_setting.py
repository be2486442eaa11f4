"""The rows of the instructions setting: every reference keeps its constraint, on tasks made up here."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.python_files import load_module
from tasks.data.records import Kind
from tasks.rewards.verifiers.instructions import instructions
from tasks.rewards.verifiers.json_schema import json_schema

TASKS = load_module(Path(__file__).parents[1] / "infra/instructions/constraints.py")
ANSWER = "Take Bus 12, which leaves at noon, and change at the Station for the Harbour. The whole way takes an Hour."

REST = "It costs two euros and ten cents for each of you."


@pytest.fixture
def options(tmp_path: Path) -> dict[str, str]:
    """A hundred tasks of either file, of which twenty are too long or have no answer in words."""
    seeds = [{"prompt": f"How do I reach place {n} today?", "response": f"{ANSWER} {REST}"} for n in range(100)]
    asked: list[dict[str, Any]] = [
        {"prompt": f"Where does route {n} end?", "references": [f"In {n} {ANSWER}"]} for n in range(80)
    ]
    asked += [{"prompt": f"{n} " + "and so on " * 30, "references": ["Fine."]} for n in range(10)]
    asked += [{"prompt": f"What is {n} + {n}?", "references": [str(2 * n)]} for n in range(10)]
    for name, rows in zip(TASKS.FILES, (seeds, asked), strict=True):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"folder": str(tmp_path)}


def rows(kind: Kind, options: dict[str, str], seed: int = 7) -> list[dict[str, Any]]:
    return list(getattr(TASKS, kind)(seed=seed, options=options))


def scores(prompts: list[dict[str, Any]], answers: list[str]) -> list[float]:
    """By the two rewards of infra/settings/instructions.yaml."""
    columns = [{name: value for name, value in row.items() if value is not None} for row in prompts]
    of_schema = json_schema(answers, columns=columns, column="json_schema", otherwise=0.0)
    of_instructions = instructions(answers, columns, otherwise=0.0)
    return [one + other for one, other in zip(of_schema, of_instructions, strict=True)]


def test_references_keep_their_constraints_and_the_plain_answer_does_not(options: dict[str, str]):
    prompts = rows("prompts", options)
    assert {row["category"] for row in prompts} == {kind.__name__ for kind in (*TASKS.SEEN, *TASKS.UNSEEN)}
    assert scores(prompts, [row["references"][0] for row in prompts]) == [1.0] * len(prompts)
    plain = zip(prompts, scores(prompts, [ANSWER] * len(prompts)), strict=True)
    assert {row["category"] for row, score in plain if score} <= {"keywords"}  # which are words of that answer
    assert not any(scores(prompts, [""] * len(prompts)))


def test_a_long_answer_ends_with_a_sentence(options: dict[str, str]):
    assert len(f"{ANSWER} {REST}".split()) > TASKS.LONGEST_ANSWER >= len(f"In 100 {ANSWER}".split())
    found = {row["references"][0] for row in rows("prompts", options) if row["category"] == "no_comma"}
    bare = ANSWER.replace(",", "")
    assert bare in found
    assert all(reference.endswith(bare) for reference in found)
    assert TASKS._first_sentences("word " * 30) == " ".join(["word"] * 25)
    assert TASKS._first_sentences("1. one 2. two " * 10).split() == ["1.", "one", "2.", "two"] * 6 + ["1."]


def test_a_task_that_is_set_aside_comes_with_unseen_kinds_alone(options: dict[str, str]):
    unseen = {kind.__name__ for kind in TASKS.UNSEEN}
    by_task: dict[str, set[str]] = {}
    for row in rows("prompts", options):
        by_task.setdefault(row["prompt"].partition("\n\n")[0], set()).add(row["category"])
    assert len(by_task) == 180
    aside = [kinds for kinds in by_task.values() if kinds & unseen]
    assert all(kinds == unseen for kinds in aside)
    assert 30 < len(aside) < 80
    assert all(len(kinds) == 1 for kinds in by_task.values() if not kinds & unseen)


def test_demonstrations_are_the_seen_prompts_with_their_references(options: dict[str, str]):
    unseen = {kind.__name__ for kind in TASKS.UNSEEN}
    seen = {row["prompt"]: row["references"] for row in rows("prompts", options) if row["category"] not in unseen}
    assert {row["prompt"]: [row["response"]] for row in rows("demonstrations", options)} == seen
    assert max(len(prompt.partition("\n\n")[2].split()) for prompt in seen) < 13
