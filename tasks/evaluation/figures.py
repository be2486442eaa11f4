"""The table of figures: how report, model cards, plots and checks name, order and write each of them.

A figure has its key in metrics/evaluate.json (tasks/evaluation/schema.py). Rewards have the names
that params.yaml gives them, and so no row here: `reward_words` names them.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from tasks.common.rounding import number
from tasks.evaluation.scores import HELD_OUT, TRAINING

Better = Literal["higher", "lower", "neither"]
Group = Literal["answers", "references", "language"]
MODELS = ("candidate", "sft", "opponent")


class Figure(NamedTuple):
    """A figure of one model's answers."""

    name: str  # its key
    group: Group
    better: Better
    words: str
    digits: int = 3
    hub_type: str = ""  # its type on the Hugging Face hub, where that is not its name

    @property
    def kind(self) -> str:
        """Its type on the Hugging Face hub."""
        return self.hub_type or self.name

    def written(self, value: float | None, sign: str = "-") -> str:
        """Write a value of it."""
        return number(value, self.digits, sign)


FIGURES = (
    Figure("length", "answers", "neither", "Length, tokens", digits=1),
    Figure("eos_rate", "answers", "higher", "Ended by EOS"),
    Figure("repetition", "answers", "lower", "Repeated 4-grams"),
    Figure("refusals", "answers", "lower", "Refusals"),
    Figure("distinct_1", "answers", "neither", "Distinct-1"),
    Figure("distinct_2", "answers", "neither", "Distinct-2"),
    Figure("bleu", "references", "higher", "BLEU", digits=2),
    Figure("chrf", "references", "higher", "chrF", digits=2),
    Figure("rouge_1", "references", "higher", "ROUGE-1", hub_type="rouge"),
    Figure("rouge_2", "references", "higher", "ROUGE-2", hub_type="rouge"),
    Figure("rouge_l", "references", "higher", "ROUGE-L", hub_type="rouge"),
    Figure("meteor", "references", "higher", "METEOR"),
    Figure("perplexity", "language", "lower", "Perplexity of the demonstrated answers"),
)
FIGURE = {figure.name: figure for figure in FIGURES}
# Of these the evaluation has differences by prompt, with intervals.
PAIRED = ("length", "eos_rate", "repetition", "rouge_l")


def reward_words(name: str, trained_on: Iterable[str] = ()) -> str:
    """Name a reward in a sentence.

    Args:
        name: among the scores by name: the training reward, the held-out reward model, or a ground-truth reward.
        trained_on: the rewards that are trained on, which have names of their own.
    """
    if name == TRAINING:
        return "the training reward"
    if name == HELD_OUT:
        return "the held-out reward model"
    return f"the training reward {name}" if name in trained_on else f"the ground-truth reward {name}"


def reward_title(name: str, trained_on: Iterable[str] = ()) -> str:
    """Name a reward at the head of a row or column."""
    words = reward_words(name, trained_on).removeprefix("the ")
    return words[0].upper() + words[1:]
