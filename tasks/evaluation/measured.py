"""A model's answers to the prompts of an evaluation, measured one by one and as a whole."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tasks.data.records import Prompt
from tasks.evaluation.compare import Resampling, win_rate
from tasks.evaluation.metrics import (
    Answers,
    Likeness,
    corpus_overlap,
    distinct,
    is_refusal,
    likenesses,
    mean,
    repetition,
)
from tasks.evaluation.scores import Scores

ScoresOf = Callable[["Measured"], list[float]]


class Measured(NamedTuple):
    """A model's answers and what is known of each: n long, in the order of the prompts."""

    answers: Answers
    scores: Scores
    likenesses: list[Likeness | None]  # None: the prompt has no reference
    repetitions: list[float]

    @property
    def reference_scores(self) -> list[float]:
        """ROUGE-L of each answer with its best reference, where the prompt has one.

        ROUGE-L, because it heeds the order of words, unlike ROUGE-1, asks for no run of them, unlike ROUGE-2, and needs
        no corpus that another machine may lack, unlike METEOR.
        """
        return [likeness.rouge_l for likeness in self.likenesses if likeness]

    @property
    def referenced(self) -> list[int]:
        """The places of the prompts that have a reference."""
        return [place for place, likeness in enumerate(self.likenesses) if likeness]

    def at(self, places: Sequence[int]) -> "Measured":
        """Keep some of the answers."""
        answers = self.answers
        return Measured(
            Answers(
                [answers.texts[place] for place in places],
                [answers.lengths[place] for place in places],
                [answers.ended[place] for place in places],
            ),
            self.scores.at(places),
            [self.likenesses[place] for place in places],
            [self.repetitions[place] for place in places],
        )


def measure(prompts: Sequence[Prompt], answers: Answers, scores: Scores) -> Measured:
    """Measure each of n answers to n prompts, which have been scored."""
    return Measured(
        answers,
        scores,
        likenesses(answers.texts, [prompt.references for prompt in prompts]),
        [repetition(text) for text in answers.texts],
    )


def win_rates(models: Mapping[str, Measured], rivals: Mapping[str, Measured], resampling: Resampling) -> dict[str, Any]:
    """Compare the candidate with its rivals: by each reward, and by the references.

    Args:
        models: candidate and others; mean scores are of each of them.
        rivals: what the candidate is compared with, by the key of the comparison.
        resampling: how intervals are drawn.
    """
    candidate = models["candidate"]

    def rates(scores: ScoresOf, draws: Resampling = resampling) -> dict[str, Any]:
        return {key: win_rate(scores(candidate), scores(rival), draws) for key, rival in rivals.items()}

    def by_reward(scores: ScoresOf) -> dict[str, Any]:
        return {name: mean(scores(model)) for name, model in models.items()} | rates(scores)

    return {
        "win_rate": rates(lambda model: model.scores.training),
        "training": {
            name: by_reward(lambda model, name=name: model.scores.components[name])  # type: ignore[misc]
            for name in candidate.scores.components
        },
        "held_out": by_reward(lambda model: model.scores.held_out or [])
        if candidate.scores.held_out is not None
        else None,
        "ground_truth": {
            name: by_reward(lambda model, name=name: model.scores.ground_truth[name])  # type: ignore[misc]
            for name in candidate.scores.ground_truth
        },
        "references": rates(lambda model: model.reference_scores, resampling.at(candidate.referenced))
        if candidate.referenced
        else None,
    }


def model_figures(prompts: Sequence[Prompt], model: Measured) -> dict[str, float | None]:
    """The figures of one model; those of overlap are None where no prompt has a reference."""
    texts, answers = model.answers.texts, model.answers
    overlap = corpus_overlap(texts, [prompt.references for prompt in prompts])
    found = [likeness for likeness in model.likenesses if likeness]
    return {
        "reward": mean(model.scores.training),
        "length": mean(answers.lengths),
        "eos_rate": mean(answers.ended),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "repetition": mean(model.repetitions),
        "refusals": mean([is_refusal(text) for text in texts]),
        "bleu": overlap.bleu if overlap else None,
        "chrf": overlap.chrf if overlap else None,
        **{name: mean([getattr(likeness, name) for likeness in found]) for name in Likeness._fields},
    }
