"""The sentiment setting's file: what each sentence serves for, and the judge, on sentences made up here."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.python_files import load_module
from tasks.data.records import Kind, Prompt
from tasks.rewards.answered import answered
from tasks.rewards.functions import FunctionReward

FILE = Path(__file__).parents[1] / "infra/sentiment/reviews.py"
REVIEWS = load_module(FILE)
GOOD, BAD = "a joy to watch from start to end", "a bore to watch from start to end"


@pytest.fixture
def options(tmp_path: Path) -> dict[str, str]:
    """Thirty sentences of each kind that begin alike, sixty with an opening of their own, twenty long ones."""
    rows = [(f"film {n} of this year is {text}", label) for n in range(30) for text, label in ((GOOD, 1), (BAD, 0))]
    rows += [(f"w{n} x{n} y{n} z{n} {GOOD if n % 2 else BAD}", n % 2) for n in range(60)]
    rows += [(f"long {n} " + " ".join([f"it is {GOOD if n % 2 else BAD}"] * 4), n % 2) for n in range(20)]
    contents = [rows[:40], rows[40:80], rows[80:]]
    for name, content in zip(REVIEWS.FILES, contents, strict=True):
        (tmp_path / name).write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in content))
    return {"folder": str(tmp_path)}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(REVIEWS, "DEMONSTRATIONS", 20)
    monkeypatch.setattr(REVIEWS, "PROMPTS", 30)


def rows(kind: Kind, options: dict[str, str], seed: int = 1) -> list[dict[str, Any]]:
    return list(getattr(REVIEWS, kind)(seed=seed, options=options))


@pytest.mark.usefixtures("few")
def test_no_sentence_serves_twice_and_none_is_lost(options: dict[str, str]):
    shares = REVIEWS.shares(**options)
    assert [len(share) for share in shares] == [30, 20, 30, 30]  # 60 + 20 + 30 + 30 of 140 sentences
    paired = {f"{pair.opening} {rest}" for pair in shares.pairs for rest in (pair.positive, pair.negative)}
    served = [paired, *({review.text for review in share} for share in shares[1:])]
    assert sum(map(len, served)) == len(set().union(*served)) == 140
    assert all(text.startswith("film") for text in paired)


@pytest.mark.usefixtures("few")
def test_rows_have_the_opening_as_prompt_and_the_positive_rest_as_the_better_answer(options: dict[str, str]):
    pair = rows("preferences", options)[0]
    assert [message["role"] for message in pair["prompt"]] == ["system", "user"]
    assert pair["prompt"][-1]["content"].startswith("Continue this review: film ")
    assert (pair["chosen"], pair["rejected"]) == (f"year is {GOOD}", f"year is {BAD}")
    assert [(row["response"], row["label"]) for row in rows("ratings", options)[:2]] == [
        (pair["chosen"], True),
        (pair["rejected"], False),
    ]
    for row in rows("prompts", options):
        opening = row["prompt"][-1]["content"].removeprefix(REVIEWS.REQUEST)
        assert len(opening.split()) == 4
        assert row["references"] == ([GOOD] if int(opening.split()[0][1:]) % 2 else [])
    assert {row["response"] for row in rows("demonstrations", options)} == {GOOD, BAD}


@pytest.mark.usefixtures("few")
def test_rows_do_not_depend_on_the_seed(options: dict[str, str]):
    for kind in ("demonstrations", "preferences", "ratings", "prompts"):
        assert rows(kind, options, 1) == rows(kind, options, 2)


@pytest.mark.usefixtures("few")
def test_the_judge_reads_opening_and_answer_together(options: dict[str, str]):
    reward = FunctionReward("positive", FILE, "positive", "reviews.py:positive", options)
    asked = [
        REVIEWS._prompt(opening)
        for opening in ("the plot is", "the plot is", "it is a joy , and", "it is a bore , and")
    ]
    answers = ["a joy to watch", "a bore to watch", "ends", "ends"]
    assert reward(answered_texts(asked, answers)) == [1.0, 0.0, 1.0, 0.0]


def answered_texts(prompts: list[Any], texts: list[str]):
    records = [Prompt(str(n), "test", "s", n, prompt, []) for n, prompt in enumerate(prompts)]
    return answered(records, texts, [[] for _ in texts])
