"""Several answers to one prompt, with ranks or scores: each two of them are a pair.

UltraFeedback has `completions` with scores, Nectar `answers` with ranks; other files have a list of answers beside one
of scores or ranks.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from tasks.data.shapes.columns import Fields
from tasks.data.shapes.statements import as_number
from tasks.data.shapes.values import ShapeError, described, shown_value

FEWEST, MOST = 2, 50  # answers of a row: 50 are 1,225 pairs
# Keys of an answer in a list of objects.
TEXTS = ("response", "answer", "text", "completion")
SCORES = ("score", "overall_score", "rating", "reward")  # more is better
RANKS = ("rank",)  # less is better


class Ranked(NamedTuple):
    """An answer, and how good it is."""

    answer: object
    score: float  # more is better; of a rank the negative
    is_rank: bool = False


def ranked_answers(fields: Mapping[str, Any]) -> list[Ranked]:
    """Read the answers of a row: `responses` with `scores` or `ranks`, or a list of objects that hold both.

    Raises:
        ShapeError: they are too few or too many, or one has no text or no score.
    """
    name = next(each for each in ("responses", "completions", "answers") if each in fields)
    answers = _listed(fields[name], name)
    if not FEWEST <= len(answers) <= MOST:
        raise ShapeError(f"{name} has {len(answers)} answers where {FEWEST} to {MOST} are needed")
    if name == "responses":
        return _beside(answers, fields)
    return [_from_object(item, f"answer {number} of {name}") for number, item in enumerate(answers, start=1)]


def ranked_pairs(ranked: Sequence[Ranked]) -> list[Fields]:
    """Give each two answers as a pair: the better one is chosen; two that are equally good are tied.

    The weight is 1 / (number of pairs), so that a prompt counts as much as one with a single pair (Ouyang et al. 2022,
    section 3.5).
    """
    pairs = list(combinations(ranked, 2))
    weight = {} if len(pairs) == 1 else {"weight": 1 / len(pairs)}
    return [_pair(first, second) | weight for first, second in pairs]


def _pair(first: Ranked, second: Ranked) -> Fields:
    chosen, rejected = (second, first) if second.score > first.score else (first, second)
    tied = {"tied": True} if first.score == second.score else {}
    strength = {} if first.is_rank else {"strength": abs(first.score - second.score)}
    return {"chosen": chosen.answer, "rejected": rejected.answer, **tied, **strength}


def _beside(answers: Sequence[object], fields: Mapping[str, Any]) -> list[Ranked]:
    given = [name for name in ("scores", "ranks") if fields.get(name) is not None]
    if len(given) != 1:
        raise ShapeError(f"{' and '.join(given) or 'neither scores nor ranks'} stand beside responses where one does")
    [name] = given
    numbers = [as_number(value, f"one of {name}") for value in _listed(fields[name], name)]
    if len(numbers) != len(answers):
        raise ShapeError(f"{name} has {len(numbers)} numbers for {len(answers)} responses")
    return [_ranked(answer, number, name == "ranks") for answer, number in zip(answers, numbers, strict=True)]


def _from_object(item: object, name: str) -> Ranked:
    if not isinstance(item, dict):
        raise ShapeError(f"{name} is {described(item)} where an object with its text and its score or rank is needed")
    text = _first_of(item, TEXTS, name)
    ranks = [key for key in RANKS if item.get(key) is not None]
    key = ranks[0] if ranks else _first_of(item, SCORES, name)
    number = as_number(item[key], f"the {key} of {name}")
    return _ranked(item[text], number, bool(ranks))


def _ranked(answer: object, number: float, is_rank: bool) -> Ranked:
    return Ranked(answer, -number if is_rank else number, is_rank)


def _first_of(item: Mapping[str, Any], keys: Sequence[str], name: str) -> str:
    """The first key that says something: Parquet gives every object the keys of all others."""
    found = [key for key in keys if key in item]
    if not found:
        raise ShapeError(f"{name} has none of {', '.join(keys)}")
    return next((key for key in found if item[key] is not None), found[0])


def _listed(value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        raise ShapeError(f"{name} is {shown_value(value)} where a list is needed")
    return value
