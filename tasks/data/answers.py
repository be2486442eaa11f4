"""What a policy answered at its evaluation points, as a file that the trainer writes and `evaluate` reads."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tasks.common.errors import InputError
from tasks.common.files import REPORTS, damaged_row, read_jsonl, write_jsonl


class Answer(NamedTuple):
    """One answer; each evaluation point has one to each of the same prompts, in the same order."""

    step: int  # of the training: steps done
    id: str  # of the prompt
    tokens: list[int]
    logp: float  # under the policy that gave it, at the temperature it was sampled at
    temperature: float


def answers_file(stage: str) -> Path:
    """Where a trainer's answers lie."""
    return REPORTS / stage / "answers.jsonl"


def write_answers(stage: str, answers: Iterable[Answer]) -> None:
    """Write the answers of all evaluation points, in the order of their steps."""
    write_jsonl(answers_file(stage), (answer._asdict() for answer in answers))


def read_answers(stage: str) -> dict[int, list[Answer]]:
    """Read the answers by evaluation point; an empty file is of a training without any.

    Raises:
        InputError: the file is missing or damaged, which it also is where a point has not the prompts of the first.
    """
    path, points = answers_file(stage), dict[int, list[Answer]]()
    for number, row in enumerate(read_jsonl(path), start=1):
        if row.keys() != set(Answer._fields):
            raise damaged_row(path, number)
        points.setdefault(row["step"], []).append(Answer(**row))
    asked = [[answer.id for answer in answers] for answers in points.values()]
    if len(asked) == 1 or any(ids != asked[0] for ids in asked):  # there is one at the beginning and one at the end
        raise InputError(f"{path} is damaged, an evaluation point lacks answers: delete it and run dvc repro")
    return points
