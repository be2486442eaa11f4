"""The candidate and its opponent in each category of prompts, at a confidence that holds for all of them together.

Among many categories, one looks worse by chance. Each is therefore compared at a raised confidence, by Bonferroni's
correction for those categories alone that have enough prompts for any conclusion.
Source: Tarone 1990, "A modified Bonferroni method for discrete data".
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from tasks.data.records import Prompt
from tasks.evaluation.compare import Resampling, bootstrap_interval
from tasks.evaluation.measured import Measured, model_figures, win_rates


def by_category(
    prompts: Sequence[Prompt], models: Mapping[str, Measured], resampling: Resampling
) -> dict[str, dict[str, Any]]:
    """Sum up each category, laid out as the whole evaluation is; nothing where no prompt has a category.

    Args:
        prompts: n prompts; one without a category is left out.
        models: n answers of each model, candidate and opponent among them.
        resampling: how intervals are drawn, at the confidence that all categories are to hold together.
    """
    places: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        if prompt.category is not None:
            places.setdefault(prompt.category, []).append(place)
    draws = {category: resampling.at(own) for category, own in places.items()}
    sizes = {category: independent(len(own), draws[category]) for category, own in places.items()}
    confidence = confidence_of_each(list(sizes.values()), resampling.confidence)
    return {
        category: _figures(
            [prompts[place] for place in own],
            {name: model.at(own) for name, model in models.items()},
            draws[category]._replace(confidence=confidence),
        )
        for category, own in sorted(places.items())
    }


def confidence_of_each(sizes: Sequence[int], confidence: float) -> float:
    """Give the confidence to compare each category with, for all conclusions together to have `confidence`.

    It is 1 - (1 - confidence) / k, with the least k such that at most k categories can reach a conclusion.

    Args:
        sizes: prompts of each category, or conversations.
        confidence: the chance that no conclusion is wrong where the models are equally good.
    """
    for k in count(1):
        of_each = 1 - (1 - confidence) / k
        if sum(size >= fewest_prompts(of_each) for size in sizes) <= k:
            return of_each
    raise AssertionError  # as many as there are categories will do


def fewest_prompts(confidence: float) -> int:
    """Count the prompts that suffice for a conclusion where one model loses all n: the sign test's p is 2 / 2^n."""
    return next(n for n in count(1) if 2 / 2**n < 1 - confidence)


def independent(prompts: int, resampling: Resampling) -> int:
    """Count the conversations of some prompts: so many independent signs the sign test has at most."""
    return len(set(resampling.conversations)) if resampling.conversations else prompts


def _figures(prompts: Sequence[Prompt], models: Mapping[str, Measured], resampling: Resampling) -> dict[str, Any]:
    ours, theirs = (models[name].scores.training for name in ("candidate", "opponent"))
    differences = [own - other for own, other in zip(ours, theirs, strict=True)]
    return {
        "prompts": len(prompts),
        "enough_prompts": independent(len(prompts), resampling) >= fewest_prompts(resampling.confidence),
        **{name: model_figures(prompts, model) for name, model in models.items()},
        **win_rates(models, {"vs_opponent": models["opponent"]}, resampling),
        "difference": {"vs_opponent": {"reward": bootstrap_interval(differences, resampling)}},
    }
