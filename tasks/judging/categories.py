"""The candidate beside its opponent in each category of prompts, at a confidence that holds for all of them at once.

Whoever looks into many categories finds one in which chance alone looks like a loss. Each is therefore compared at a
raised confidence, by Bonferroni's correction for those categories alone that have prompts enough for any verdict.
Source: Tarone 1990, "A modified Bonferroni method for discrete data".
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from tasks.judging.compare import Resampling, bootstrap_interval, win_rate
from tasks.judging.metrics import Answers, mean


def by_category(
    categories: Sequence[str | None], models: Mapping[str, Answers], resampling: Resampling
) -> dict[str, dict[str, Any]]:
    """Sum up each category, laid out as the whole evaluation is; nothing where no prompt has a category.

    Args:
        categories: of n prompts; one of None is left out.
        models: n answers of each model, candidate and opponent among them.
        resampling: how intervals are drawn, at the confidence that all categories are to hold together.
    """
    places: dict[str, list[int]] = {}
    for place, category in enumerate(categories):
        if category is not None:
            places.setdefault(category, []).append(place)
    confidence = confidence_of_each([len(own) for own in places.values()], resampling.confidence)
    return {
        category: _figures(
            {name: _at(own, answers) for name, answers in models.items()}, resampling._replace(confidence=confidence)
        )
        for category, own in sorted(places.items())
    }


def confidence_of_each(sizes: Sequence[int], confidence: float) -> float:
    """Give the confidence to compare each category with, for all verdicts together to have `confidence`.

    It is 1 - (1 - confidence) / k, with the least k such that at most k categories can reach a verdict.

    Args:
        sizes: prompts of each category.
        confidence: the chance that no verdict is wrong where the models are equally good.
    """
    for k in count(1):
        of_each = 1 - (1 - confidence) / k
        if sum(size >= fewest_prompts(of_each) for size in sizes) <= k:
            return of_each
    raise AssertionError  # as many as there are categories will do


def fewest_prompts(confidence: float) -> int:
    """Count the prompts that suffice for a verdict where one model loses all n: the sign test's p is then 2 / 2^n."""
    return next(n for n in count(1) if 2 / 2**n < 1 - confidence)


def _at(places: Sequence[int], answers: Answers) -> Answers:
    return Answers(
        texts=[answers.texts[place] for place in places],
        lengths=[answers.lengths[place] for place in places],
        ended=[answers.ended[place] for place in places],
        rewards=[answers.rewards[place] for place in places],
    )


def _figures(models: Mapping[str, Answers], resampling: Resampling) -> dict[str, Any]:
    ours, theirs = (models[name].rewards for name in ("candidate", "opponent"))
    differences = [own - other for own, other in zip(ours, theirs, strict=True)]
    return {
        "prompts": len(ours),
        "enough_prompts": len(ours) >= fewest_prompts(resampling.confidence),
        **{name: _means(answers) for name, answers in models.items()},
        "win_rate": {"vs_opponent": win_rate(ours, theirs, resampling)},
        "difference": {"vs_opponent": {"reward": bootstrap_interval(differences, resampling)}},
    }


def _means(answers: Answers) -> dict[str, float | None]:
    return {"reward": mean(answers.rewards), "length": mean(answers.lengths), "eos_rate": mean(answers.ended)}
