import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.rewards.answered import Answered
from tests.rewards.verifiers.scored import scored, verifier

NAME = "numeric_answer"
GSM8K = Path(__file__).parents[4] / "shared/data/gsm8k"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("3 + 4 = 7, so the answer is 72.", "72"),
        ("She pays $72", "72"),
        ("1,234", "1234"),
        ("72.0", "72"),
        ("144/2", "72"),
        (r"\boxed{72}", "72"),
        (r"First \boxed{1}, at last \boxed{72}. Checked in 5 ways.", "72"),
        (r"\boxed{\boxed{72}}", "72"),
        (r"\boxed{\frac12}", "1/2"),
        ("0.5", r"\frac{1}{2}"),
        (r"$\sqrt{8}$", r"2\sqrt{2}"),
        ("50%", "0.5"),
        ("18", "She sells 9 for $2: 18"),
    ],
)
def test_what_is_right(answer: str, expected: str):
    assert scored(NAME, answer, "-1", expected) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "The answer is correct.",
        "How much are 70 and 2 and 1?",
        "71, 72, 73",
        "The answer is 71, 72, 73",
        r"\boxed{72} \boxed{1}",
        r"\boxed{71, 72, 73}",
        r"\boxed{\pm 72}",
        r"\boxed{x}",
        r"\boxed{\mathbb{R}}",
        "$[0, 100]$",
        "nan",
        r"\boxed{\frac{0}{0}}",
        "-72",
        "seventy-two",
        "\u0667\u0662",  # Arabic digits
        "9" * 10**5,
        "(" * 5000 + "72" + ")" * 5000,
        r"\frac{" * 2000 + "1" + "}{2}" * 2000,
        "$" * 9000,
        "1+" * 5000 + "1",
        "__import__('os').abort()",
    ],
)
def test_what_is_wrong(answer: str):
    assert scored(NAME, answer, "72") == 0


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["10**10**10", "10^10^10", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{10000000000!}"])
def test_what_cannot_be_computed_is_wrong_in_time_and_the_next_answer_is_read(answer: str):
    assert scored(NAME, answer, "72", seconds=0.3) == 0
    assert scored(NAME, "72", "72", seconds=0.3) == 1


def test_where_its_program_was_killed_between_two_answers_the_next_is_still_right():
    assert scored(NAME, "7", "7") == 1.0
    program = verifier(NAME)._function.__globals__["PROGRAM"]
    program._process.kill()
    program._process.wait()
    assert scored(NAME, "7", "7") == 1.0


@pytest.mark.parametrize(("answer", "score"), [("2 #### 18", 1), ("18", 0), ("#### 18 #### 2", 0), ("18 ####", 0)])
def test_with_a_marker_only_what_follows_the_last_one_counts(answer: str, score: float):
    assert scored(NAME, answer, "3 * 6 #### 18", marker="####") == score


def test_decimals_are_a_setting():
    assert scored(NAME, "3.14", "3.1415", decimals=2) == 1
    assert scored(NAME, "3.14", "3.1415") == 0


def test_a_column_may_hold_a_number():
    assert scored(NAME, "72", row={"key": 72}, column="key") == 1


def test_a_key_without_a_number_is_refused_with_the_row():
    with pytest.raises(
        InputError, match=r"answer of prompt p1 \('72'\): what is expected, \['seventy-two'\], holds no"
    ):
        scored(NAME, "72", "seventy-two")


@pytest.mark.skipif(not GSM8K.is_dir(), reason="../shared/data/gsm8k is absent")
def test_it_agrees_with_the_labels_of_solutions_by_models():
    questions = map(json.loads, (GSM8K / "qa_test.jsonl").read_text().splitlines())
    keys = {row["question"]: row["answer"] for row in questions}
    rows = [json.loads(line) for line in (GSM8K / "labelled.jsonl").read_text().splitlines()]
    nothing: list[list[Any]] = [[] for _ in rows]
    columns = [{"key": keys[row["prompt"]]} for row in rows]
    scores = verifier(NAME, column="key")(
        Answered(nothing, [row["completion"] for row in rows], nothing, nothing, columns)
    )
    agreed = sum(score == row["label"] for score, row in zip(scores, rows, strict=True))
    assert len(rows) == 2400
    assert agreed / len(rows) >= 0.99
