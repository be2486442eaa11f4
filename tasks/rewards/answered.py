"""What every reward is: a function from answers, and all that is known about their prompts, to one number an answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tasks.common.errors import InputError, quoted
from tasks.data.records import Message, Prompt


@dataclass(frozen=True)
class Answered:
    """What a reward sees: n answers, in any order, and the rows of their prompts."""

    prompts: Sequence[Sequence[Message]]
    answers: Sequence[str]
    answer_ids: Sequence[Sequence[int]]  # the answers' tokens, the one that ends an answer included
    references: Sequence[Sequence[str]]  # reference answers, none for some prompts
    columns: Sequence[Mapping[str, Any]]  # extra columns of the prompts' rows, by name
    ids: Sequence[str] = ()  # of the prompts, for messages; a reward is not given them

    def __len__(self) -> int:
        """Count the answers."""
        return len(self.answers)

    def at(self, index: int) -> "Answered":
        """Give one answer alone."""
        return self.take([index])

    def take(self, places: Sequence[int]) -> "Answered":
        """Give some of the answers."""
        return Answered(
            [self.prompts[place] for place in places],
            [self.answers[place] for place in places],
            [self.answer_ids[place] for place in places],
            [self.references[place] for place in places],
            [self.columns[place] for place in places],
            [self.ids[place] for place in places] if self.ids else (),
        )


class Reward(Protocol):
    """Something that scores answers."""

    @property
    def name(self) -> str:
        """The name under which its scores are reported."""
        ...

    def __call__(self, answered: Answered) -> list[float]:
        """Give one finite number an answer, in their order; it depends on no other answer.

        Raises:
            InputError: it cannot.
        """
        ...


def answered(prompts: Sequence[Prompt], answers: Sequence[str], answer_ids: Sequence[Sequence[int]]) -> Answered:
    """Put prompts and the answers to them together, one answer a prompt."""
    return Answered(
        prompts=[prompt.prompt for prompt in prompts],
        answers=answers,
        answer_ids=answer_ids,
        references=[prompt.references for prompt in prompts],
        columns=[prompt.columns for prompt in prompts],
        ids=[prompt.id for prompt in prompts],
    )


def score_by_key(
    score: Callable[[str, Any, Mapping[str, Any]], float],
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    columns: Sequence[Mapping[str, Any]],
    *,
    column: str | None,
    otherwise: float | None,
) -> list[float]:
    """Score each of n answers with its key: what a column of its row holds, or its references.

    Args:
        score: of an answer, its key and its row.
        answers: n texts.
        references: n lists.
        columns: n rows.
        column: whose value is the key; None: the references are.
        otherwise: the score of an answer without a key; None: there must be one.

    Raises:
        InputError: there is no key, and no score for such a row.
    """

    def scored(answer: str, known: Sequence[str], row: Mapping[str, Any]) -> float:
        key = (list(known) or None) if column is None else row.get(column)
        if key is not None:
            return score(answer, key, row)
        if otherwise is None:
            lacks = "it has no reference answer" if column is None else f"its row has no {quoted(column)}"
            raise InputError(
                f"{lacks}; give it one, name an extra column that has it (option column), or a score for such rows "
                "(option otherwise)"
            )
        return otherwise

    return [scored(*each) for each in zip(answers, references, columns, strict=True)]


def key_texts(key: Any) -> list[str]:  # noqa: ANN401 - whatever a row holds
    """Give the texts of a key: one, or each of a list."""
    return [str(each) for each in (key if isinstance(key, list) else [key])]
