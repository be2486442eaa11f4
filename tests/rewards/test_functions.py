"""A user's reward function: what it is given, and every fault of its file, of itself and of what it returns."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.rewards.answered import Answered
from tasks.rewards.functions import FunctionReward

ANSWERED = Answered(
    prompts=[[{"role": "user", "content": "one"}], [{"role": "user", "content": "two"}]],
    answers=["a", "bbb"],
    answer_ids=[[5, 1], [6, 6, 1]],
    references=[["a"], []],
    columns=[{"key": 3}, {"key": 4}],
    ids=["p1", "p2"],
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def reward(code: str | bytes, **options: Any) -> FunctionReward:
    path = Path("mine.py")
    path.write_bytes(code if isinstance(code, bytes) else code.encode())
    return FunctionReward("mine", path, "score", "mine.py:score", options)


def complaint(code: str | bytes, answered: Answered | None = None, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        loaded = reward(code, **options)
        if answered is not None:
            loaded(answered)
    return str(refused.value)


@pytest.mark.parametrize(
    ("code", "scores"),
    [
        ("def score(answers): return [len(each) for each in answers]", [1, 3]),
        ("def score(*, answer_ids): return (len(each) for each in answer_ids)", [2, 3]),
        (
            "def score(answers, references):\n"
            "    return [a in known for a, known in zip(answers, references)]",
            [1, 0],
        ),
        ("def score(columns): return [each['key'] for each in columns]", [3, 4]),
        ("def score(prompts): return [len(each[-1]['content']) for each in prompts]", [3, 3]),
        ("def score(**known): return [len(known)] * 2", [5, 5]),
        ("import numpy\ndef score(answers): return numpy.array([1.5, 2.5], dtype='float32')", [1.5, 2.5]),
        ("class Score:\n    def __call__(self, answers): return [1, 2]\nscore = Score()", [1, 2]),
        (
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "@dataclass\nclass Number:\n    number: int\n"
            "def score(answers): return [Number(7).number for _ in answers]",
            [7, 7],
        ),
    ],
)  # fmt: skip
def test_it_is_given_by_name_what_it_asks_for(code: str, scores: list[float]):
    found = reward(code)(ANSWERED)
    assert found == scores
    assert {type(number) for number in found} == {float}


def test_no_answers_need_no_function():
    assert reward("def score(answers): raise ValueError")(Answered([], [], [], [], [])) == []


def test_what_it_changes_is_its_own():
    changing = reward("def score(answers, columns):\n    answers.clear()\n    columns[0].clear()\n    return [1, 2]")
    assert changing(ANSWERED) == changing(ANSWERED)
    assert ANSWERED.columns[0] == {"key": 3}


def test_nothing_is_left_beside_the_file_or_on_the_path():
    Path("beside.py").write_text("")
    path = list(sys.path)
    assert "ModuleNotFoundError" in complaint("import beside")
    assert sys.path == path
    assert sorted(each.name for each in Path().iterdir()) == ["beside.py", "mine.py"]


def test_two_functions_of_one_name_are_two():
    Path("a").mkdir()
    Path("b").mkdir()
    loaded = []
    for number, name in enumerate("ab"):
        Path(name, "mine.py").write_text(f"NUMBER = {number}\ndef score(answers): return [NUMBER for _ in answers]")
        loaded.append(FunctionReward(name, Path(name, "mine.py"), "score", "x"))
    assert [each(ANSWERED) for each in loaded] == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def score(answers) return 1", "is no Python file, SyntaxError: expected ':' (line 1)"),
        (b"\xff\xfe", "is no Python file, SyntaxError"),
        ("\0", "is no Python file, SyntaxError"),
        ("x = 1\nraise KeyError('k')", "cannot be loaded, KeyError: 'k' (line 2): fix it"),
        ("raise SystemExit(3)", "cannot be loaded, SystemExit: 3 (line 1)"),
        ("import not_there", "No module named 'not_there' (line 1): fix it, or install what it needs"),
        ("def scores(answers): return []", "has no such function"),
        ("score = 3", "has no such function"),
        ("async def score(answers): return []", "is asynchronous"),
        ("def score(): return []", "asks for nothing"),
        (
            "def score(answers, reference): return []",
            "asks for reference, which is not among its options, but a reward",
        ),
        ("def score(answers, /): return []", "asks for answers, which is not among its options, but a reward is given"),
        (
            "def score(*answers): return []",
            "asks for answers, which is not among its options, but a reward is given by",
        ),
        ("def score(limit=3): return []", "asks for nothing, but a reward is given by name: prompts, "),
    ],
)
def test_what_cannot_be_loaded_is_reported_with_its_cure(code: str | bytes, message: str):
    text = complaint(code)
    assert text.startswith("mine.py:score ")
    assert message in text


@pytest.mark.parametrize(
    "parameters", ["answers, limit", "answers, limit=9", "answers, *, limit: int", "limit, answers", "answers, **rest"]
)
def test_options_are_keyword_arguments(parameters: str):
    limit = "rest['limit']" if "rest" in parameters else "limit"
    assert reward(f"def score({parameters}): return [{limit}] * 2", limit=3)(ANSWERED) == [3, 3]


def test_options_are_the_same_at_every_call():
    emptying = reward("def score(answers, words): return [words.pop(), words.pop()]", words=[1.0, 2.0])
    assert emptying(ANSWERED) == emptying(ANSWERED) == [2, 1]


@pytest.mark.parametrize(
    ("parameters", "options", "message"),
    [
        ("answers", {"limit": 3}, "has no option 'limit', but none: correct it in params.yaml"),
        ("answers, limit, words=()", {"limits": 3, "limit": 1}, "has no option 'limits', but limit, words: correct it"),
        ("answers, **rest", {"answers": []}, "has answers as an option, but every reward is given that: rename"),
        (
            "answers, limit: int",
            {"limit": "3"},
            "the option limit is '3', but Input should be a valid integer: correct",
        ),
        ("answers, limit: int | None", {"limit": 1.5}, "the option limit is 1.5, but "),
        ("answers, words: list[str]", {"words": ["a", 1]}, "the option words is ['a', 1], but "),
    ],
)
def test_wrong_options_are_refused(parameters: str, options: dict[str, Any], message: str):
    assert message in complaint(f"def score({parameters}): return []", **options)


def test_an_error_of_its_own_for_the_user_is_that_sentence_with_the_row():
    code = (
        "from tasks.common.errors import InputError\n"
        "def score(answers, references):\n"
        "    if not all(references): raise InputError('its row has no reference; give it one')\n"
    )
    assert complaint(code, ANSWERED) == (
        "mine.py:score cannot score the answer of prompt p2 ('bbb'): its row has no reference; give it one"
    )


def test_a_missing_file_is_refused():
    with pytest.raises(InputError, match=r"^gone\.py:score does not exist: "):
        FunctionReward("mine", Path("gone.py"), "score", "gone.py:score")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1.0]", "gave 1 numbers for 2 answers: return a list with one number an answer"),
        ("return [1.0] * 3", "gave 3 numbers for 2 answers"),
        ("return 1.0", "gave 1.0 for 2 answers"),
        ("return None", "gave None for 2 answers"),
        ("return '12'", "gave '12' for 2 answers"),
        ("return {1.0: 1, 2.0: 2}", "for 2 answers: return a list"),
        ("return [1.0, None]", "gave None for the answer of prompt p2 ('bbb'): return finite numbers"),
        ("return ['1', 2]", "gave '1' for the answer of prompt p1 ('a')"),
        ("return [1.0, float('nan')]", "gave nan for the answer of prompt p2"),
        ("return [float('-inf'), 1.0]", "gave -inf for the answer of prompt p1"),
        ("return [1e39, 1.0]", "gave 1e+39 for the answer of prompt p1"),
        ("return [10**400, 1.0]", "for the answer of prompt p1"),
        ("return [1j, 1.0]", "gave 1j for the answer of prompt p1"),
        ("return [3 / (3 - len(each)) for each in answers]", "raised ZeroDivisionError: division by zero (line 1) for "
         "the answer of prompt p2 ('bbb'): fix the function, or take it out of rewards in params.yaml"),
        ("raise ValueError", "raised ValueError (line 1) for the answer of prompt p1"),
        ("assert len(answers) == 1\n    return [0.0]", "raised AssertionError (line 1) when it was given several "),
    ],
)  # fmt: skip
def test_a_wrong_return_is_reported_with_the_row_and_the_cure(body: str, message: str):
    text = complaint(
        f"def score(answers): {body}" if "\n" not in body else f"def score(answers):\n    {body}", ANSWERED
    )
    assert text.startswith("mine.py:score ")
    assert message.replace("(line 1)", "(line 2)") in text if "\n" in body else message in text


def test_without_ids_the_answer_is_counted():
    nameless = Answered(
        *(getattr(ANSWERED, name) for name in ("prompts", "answers", "answer_ids", "references", "columns"))
    )
    assert "for the answer number 2 ('bbb')" in complaint("def score(answers): return [0, float('nan')]", nameless)
