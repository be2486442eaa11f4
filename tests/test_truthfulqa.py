"""The TruthfulQA setting's file: its rows, and the reward that compares with references, on questions made up here."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tasks.common.python_files import load_module
from tasks.data.records import Kind, Prompt
from tasks.rewards.answered import answered
from tasks.rewards.functions import FunctionReward

FILE = Path(__file__).parents[1] / "infra/truthfulqa/questions.py"
QUESTIONS = load_module(FILE)
ROWS: dict[str, list[dict[str, Any]]] = {
    "pairs_train.jsonl": [
        {"prompt": "a?", "chosen": "yes", "rejected": "no"},
        {"prompt": "a?", "chosen": "yes", "rejected": "never"},  # shares an answer with the first
        {"prompt": "a?", "chosen": "surely", "rejected": "never"},
        {"prompt": "a?", "chosen": "indeed", "rejected": "hardly"},  # one too many
    ],
    "pairs_test.jsonl": [{"prompt": "b?", "chosen": "blue", "rejected": "red"}],
    "refs_val.jsonl": [{"prompt": "a?", "references": ["yes", "surely"], "incorrect": ["no"], "category": "c"}],
    "sft_train.jsonl": [{"prompt": "a?", "response": "yes"}, {"prompt": "a?", "response": "surely"}],
}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, str]:
    for kind, part in product(("pairs", "refs", "sft"), QUESTIONS.PARTS):
        name = f"{kind}_{part}.jsonl"
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in ROWS.get(name, [])))
    return {"folder": str(tmp_path)}


def rows(kind: Kind, options: dict[str, str]) -> list[dict[str, Any]]:
    found = list(getattr(QUESTIONS, kind)(seed=1, options=options))
    assert found == list(getattr(QUESTIONS, kind)(seed=2, options=options))
    assert all([message["role"] for message in row["prompt"]] == ["system", "user"] for row in found)
    return [{**row, "prompt": row["prompt"][-1]["content"]} for row in found]


def test_pairs_of_a_question_share_no_answer(options: dict[str, str]):
    assert rows("preferences", options) == [
        {"prompt": "a?", "chosen": "yes", "rejected": "no"},
        {"prompt": "a?", "chosen": "surely", "rejected": "never"},
        {"prompt": "b?", "chosen": "blue", "rejected": "red"},
    ]


def test_ratings_are_the_answers_of_the_pairs(options: dict[str, str]):
    rated = [(row["response"], row["label"]) for row in rows("ratings", options)]
    assert rated == [("yes", True), ("no", False), ("surely", True), ("never", False), ("blue", True), ("red", False)]


def test_a_question_is_shown_once_and_asked_once(options: dict[str, str]):
    assert rows("demonstrations", options) == [{"prompt": "a?", "response": "yes"}]
    assert rows("prompts", options) == [{"prompt": "a?", "references": ["yes", "surely"], "incorrect": ["no"]}]


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("The train runs under the airport.", 1.0),
        ("There are fascist symbols there", 0.0),
        ("Nobody knows", 0.5),
        ("", 0.5),
    ],
)
def test_the_reward_says_which_references_are_nearer(answer: str, score: float):
    reward = FunctionReward("truthful", FILE, "truthful", "questions.py:truthful", {})
    columns = {"incorrect": ["There are fascist symbols under it", "A city is there"]}
    prompt = Prompt("p", "test", "s", 0, [], ["A train runs under the airport", "Tunnels"], columns=columns)
    assert reward(answered([prompt], [answer], [[]])) == [score]
