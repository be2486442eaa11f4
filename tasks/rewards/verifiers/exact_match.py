"""Whether an answer is one of the expected texts, after both have been normalised."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tasks.rewards.answered import key_texts, score_by_key

Step = Literal["unicode", "case", "punctuation", "articles", "whitespace"]
# In this order, whatever order they are named in. All but unicode: SQuAD's normalisation (Rajpurkar et al. 2016).
STEPS: dict[Step, Callable[[str], str]] = {
    "unicode": lambda text: unicodedata.normalize("NFKC", text),
    "case": str.casefold,
    "punctuation": lambda text: "".join(each for each in text if unicodedata.category(each)[0] != "P"),
    "articles": lambda text: re.sub(r"\b(?:an?|the)\b", " ", text, flags=re.IGNORECASE),
    "whitespace": lambda text: " ".join(text.split()),
}


def exact_match(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    columns: Sequence[Mapping[str, Any]],
    *,
    column: str | None = None,
    marker: str | None = None,
    normalise: list[Step] = ["unicode", "case", "whitespace"],  # noqa: B006 - read only
    partial: bool = False,
    otherwise: float | None = None,
) -> list[float]:
    """Score n answers: 1 for one of the expected texts, else 0. An answer with nothing in it is never right.

    Args:
        answers: the texts.
        references: the expected texts, unless a column has them.
        columns: the rows' extra columns.
        column: the one that holds the expected text, or a list of them.
        marker: what follows its last occurrence is the answer; without it there is none.
        normalise: what is made alike first.
        partial: give the F1 of the words in common, by the best expected text, in place of 0.
        otherwise: the score for rows without an expected text.

    Raises:
        InputError: a row has no expected text, and `otherwise` is not set.
    """

    def normalised(text: str) -> str:
        for name, step in STEPS.items():
            text = step(text) if name in normalise else text
        return text

    def score(answer: str, key: Any, _: object) -> float:  # noqa: ANN401 - whatever a row holds
        _, found, rest = answer.rpartition(marker) if marker else ("", "", answer)
        text, known = normalised(rest if found or not marker else ""), [normalised(each) for each in key_texts(key)]
        if not text.strip():
            return 0.0
        return 1.0 if text in known else max(_f1(text, each) for each in known) if partial else 0.0

    return score_by_key(score, answers, references, columns, column=column, otherwise=otherwise)


def _f1(text: str, expected: str) -> float:
    """F1 of the words in common, each as often as it occurs in both."""
    ours, theirs = text.split(), expected.split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0
