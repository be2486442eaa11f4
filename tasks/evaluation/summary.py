"""The answers of several models to the same prompts, summed up as figures and as rows to read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.data.records import Prompt
from tasks.evaluation.best_of import BestOf
from tasks.evaluation.categories import by_category
from tasks.evaluation.compare import Interval, Resampling, bootstrap_interval
from tasks.evaluation.lengths import length_controlled_win_rate
from tasks.evaluation.measured import Measured, Models, model_figures, opinions
from tasks.evaluation.metrics import corpus_overlap, mean, meteor_variant, standard_error
from tasks.evaluation.over_optimisation import Mark, frontier, judged

DIGITS = 6


def summarise(
    prompts: Sequence[Prompt],
    models: Models,
    kl: Sequence[float],
    *,
    perplexity: Mapping[str, float | None],
    best_of_sft: Sequence[BestOf],
    marks: Sequence[Mark],
    resampling: Resampling,
) -> dict[str, Any]:
    """All figures of the evaluation, rounded so that they read well; null where one cannot be computed.

    Args:
        prompts: n prompts.
        models: candidate, sft and opponent, judged on these prompts.
        kl: n estimates of KL(candidate || SFT), in nats an answer.
        perplexity: of the demonstrated answers, under candidate and SFT.
        best_of_sft: the best of n answers of SFT.
        marks: the candidate on its way, on prompts of their own.
        resampling: how intervals are drawn.
    """
    candidate = models["candidate"]
    rivals = {f"vs_{name}": model for name, model in models.items() if name != "candidate"}
    rewards = candidate.answers.rewards
    figures = {
        "prompts": len(prompts),
        **conversations(resampling),
        "with_references": sum(bool(prompt.references) for prompt in prompts),
        **{name: model_figures(prompts, model) for name, model in models.items()},
        **opinions(models, rivals, resampling),
        "length_controlled_win_rate": {
            name: length_controlled_win_rate(
                rewards, rival.answers.rewards, candidate.answers.lengths, rival.answers.lengths, resampling
            )
            for name, rival in rivals.items()
        },
        "difference": {name: _differences(candidate, rival, resampling) for name, rival in rivals.items()},
        "kl": {"mean": mean(kl), "standard_error": standard_error(kl, resampling.groups(len(kl)))},
        "perplexity": dict(perplexity),
        "best_of_sft": [
            {"n": each.n, "kl": each.kl, **judged(each.scores, each.wins, resampling)} for each in best_of_sft
        ],
        "frontier": frontier(marks, resampling),
        "categories": by_category(prompts, models, resampling),
        "confidence": resampling.confidence,
        "methods": _methods(prompts, candidate),
    }
    return rounded(figures)


def conversations(resampling: Resampling) -> dict[str, int]:
    """Count the conversations that the prompts are turns of; nothing where each is its own."""
    names = resampling.conversations or ()
    return {"conversations": len(set(names))} if len(set(names)) < len(names) else {}


def rows(prompts: Sequence[Prompt], models: Models, kl: Sequence[float] | None) -> Iterator[dict[str, Any]]:
    """A row a prompt: what each model answered and its figures.

    Args:
        prompts: n prompts.
        models: candidate, sft and opponent, judged on these prompts.
        kl: n estimates of KL(candidate || SFT) from these very answers; None where they came from others.
    """
    for place, prompt in enumerate(prompts):
        answers = {name: _row(model, place) for name, model in models.items()}
        if kl is not None:
            answers["candidate"]["kl"] = kl[place]
        asked = {name: getattr(prompt, name) for name in ("id", "category", "prompt", "references")}
        yield rounded(asked | answers)


def rounded(content: Mapping[str, Any]) -> dict[str, Any]:
    """Round every number of nested content; named tuples become dictionaries, and what is not finite becomes None."""
    return {key: _rounded(value) for key, value in content.items()}


def _rounded(value: Any) -> Any:  # noqa: ANN401 (whatever JSON can hold)
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0 if math.isfinite(value) else None  # + 0.0: no minus zero
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return rounded(value._asdict())
    if isinstance(value, Mapping):
        return rounded(value)
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _row(model: Measured, place: int) -> dict[str, Any]:
    answers, likeness = model.answers, model.likenesses[place]
    return {
        "answer": answers.texts[place],
        "reward": answers.rewards[place],
        "length": answers.lengths[place],
        "held_out": model.held_out[place],
        "ended": answers.ended[place],
        "repetition": model.repetitions[place],
        **(likeness._asdict() if likeness else {}),
        **({"ground_truth": model.gold[place]} if model.gold is not None else {}),
    }


def _differences(ours: Measured, theirs: Measured, resampling: Resampling) -> dict[str, Interval | None]:
    """Candidate minus the other, by prompt, of every figure that is a mean over prompts."""
    pairs: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        "reward": (ours.answers.rewards, theirs.answers.rewards),
        "held_out": (ours.held_out, theirs.held_out),
        "length": (ours.answers.lengths, theirs.answers.lengths),
        "eos_rate": (ours.answers.ended, theirs.answers.ended),
        "repetition": (ours.repetitions, theirs.repetitions),
        "rouge_l": (ours.nearness, theirs.nearness),
        "ground_truth": (ours.ruled, theirs.ruled),
    }
    draws = {"rouge_l": resampling.at(ours.referenced)}
    return {name: _difference(*pair, draws.get(name, resampling)) for name, pair in pairs.items()}


def _difference(ours: Sequence[float], theirs: Sequence[float], resampling: Resampling) -> Interval | None:
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    return bootstrap_interval(differences, resampling) if differences else None


def _methods(prompts: Sequence[Prompt], candidate: Measured) -> dict[str, str | None]:
    overlap = corpus_overlap(candidate.answers.texts, [prompt.references for prompt in prompts])
    return {
        "bleu": overlap.bleu_signature if overlap else None,
        "chrf": overlap.chrf_signature if overlap else None,
        "rouge": "F1, best reference, Porter stemmer",
        "meteor": meteor_variant(),
    }
