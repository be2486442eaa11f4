"""A model's answers to the prompts of an evaluation, measured one by one and as a whole."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

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
from tasks.evaluation.over_optimisation import GOLD, HELD_OUT, PROXY, Scores

Item = TypeVar("Item")
Gold = Callable[[str, str], float]  # prompt text and answer to a score in [0, 1]


class Measured(NamedTuple):
    """A model's answers and what is known of each: n long, in the order of the prompts."""

    answers: Answers
    held_out: list[float]  # scores of the held-out judge
    likenesses: list[Likeness | None]  # None: the prompt has no reference
    repetitions: list[float]
    gold: list[float] | None  # None: no known rule

    @property
    def scores(self) -> Scores:
        """The scores of all who judged."""
        known = {} if self.gold is None else {GOLD: self.gold}
        return {PROXY: self.answers.rewards, HELD_OUT: self.held_out, **known}

    @property
    def nearness(self) -> list[float]:
        """How near each answer is to its best reference, where the prompt has one.

        ROUGE-L, because it heeds the order of words, unlike ROUGE-1, asks for no run of them, unlike ROUGE-2, and needs
        no corpus that another machine may lack, unlike METEOR.
        """
        return [likeness.rouge_l for likeness in self.likenesses if likeness]

    @property
    def referenced(self) -> list[int]:
        """The places of the prompts that `nearness` is of."""
        return [place for place, likeness in enumerate(self.likenesses) if likeness]

    @property
    def ruled(self) -> list[float]:
        """The known rule's scores; none where there is no rule."""
        return self.gold or []

    def at(self, places: Sequence[int]) -> "Measured":
        """Keep some of the answers."""

        def some(values: Sequence[Item]) -> list[Item]:
            return [values[place] for place in places]

        said = self.answers
        return Measured(
            Answers(some(said.texts), some(said.lengths), some(said.ended), some(said.rewards)),
            some(self.held_out),
            some(self.likenesses),
            some(self.repetitions),
            None if self.gold is None else some(self.gold),
        )


Models = Mapping[str, Measured]  # candidate, sft, opponent


def measure(prompts: Sequence[Prompt], answers: Answers, held_out: list[float], gold: Gold | None) -> Measured:
    """Measure every answer by itself.

    Args:
        prompts: n prompts.
        answers: n answers, with the reward model's scores.
        held_out: n scores of the held-out judge.
        gold: the known rule, where the prompts have one.
    """
    return Measured(
        answers,
        held_out,
        likenesses(answers.texts, [prompt.references for prompt in prompts]),
        [repetition(text) for text in answers.texts],
        [gold(prompt_text(prompt), text) for prompt, text in zip(prompts, answers.texts, strict=True)]
        if gold
        else None,
    )


def prompt_text(prompt: Prompt) -> str:
    """The turn that is answered: the conversation's last."""
    return prompt.prompt[-1]["content"]


def opinions(models: Models, rivals: Mapping[str, Measured], resampling: Resampling) -> dict[str, Any]:
    """Who wins, by the word of each who judged: the candidate's win rates over its rivals, and mean scores.

    Args:
        models: candidate and others; mean scores are of each of them.
        rivals: whom the candidate is compared with, by the key of the comparison.
        resampling: how intervals are drawn.
    """
    candidate = models["candidate"]

    def rates(scores: Callable[[Measured], list[float]], draws: Resampling = resampling) -> dict[str, Any]:
        return {key: win_rate(scores(candidate), scores(rival), draws) for key, rival in rivals.items()}

    def means(scores: Callable[[Measured], list[float]]) -> dict[str, Any]:
        return {name: mean(scores(model)) for name, model in models.items()}

    return {
        "win_rate": rates(lambda model: model.answers.rewards),
        "held_out": means(lambda model: model.held_out) | rates(lambda model: model.held_out),
        "references": rates(lambda model: model.nearness, resampling.at(candidate.referenced))
        if candidate.nearness
        else None,
        **(
            {"ground_truth": means(lambda model: model.ruled) | rates(lambda model: model.ruled)}
            if candidate.ruled
            else {}
        ),
    }


def model_figures(prompts: Sequence[Prompt], model: Measured) -> dict[str, float | None]:
    """The figures of one model; those of overlap are None where no prompt has a reference."""
    texts, answers = model.answers.texts, model.answers
    overlap = corpus_overlap(texts, [prompt.references for prompt in prompts])
    found = [likeness for likeness in model.likenesses if likeness]
    return {
        "reward": mean(answers.rewards),
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
