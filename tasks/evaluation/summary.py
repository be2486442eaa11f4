"""The answers of several models to the same prompts, summed up as figures and as rows to read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.common.record import parsed
from tasks.data.records import Prompt
from tasks.evaluation.best_of import BestOf
from tasks.evaluation.categories import by_category
from tasks.evaluation.compare import Interval, Resampling, bootstrap_interval
from tasks.evaluation.lengths import length_controlled_win_rate
from tasks.evaluation.measured import Measured, model_figures, win_rates
from tasks.evaluation.metrics import corpus_overlap, mean, meteor_variant, standard_error
from tasks.evaluation.opponent import Opponent
from tasks.evaluation.over_optimisation import EvaluationPoint, curve_figures, over_optimisation_curve
from tasks.evaluation.schema import EVALUATION, Evaluation
from tasks.rewards.cut_answers import cut_answers

DIGITS = 6


def summarise(
    prompts: Sequence[Prompt],
    models: Mapping[str, Measured],
    kl: Sequence[float],
    *,
    opponent: Opponent,
    perplexity: Mapping[str, float | None],
    best_of_sft: Sequence[BestOf],
    points: Sequence[EvaluationPoint],
    resampling: Resampling,
    llm_judge: Mapping[str, Any] | None = None,
) -> Evaluation:
    """All figures of the evaluation, rounded so that they read well; null where one cannot be computed.

    Args:
        prompts: n prompts.
        models: candidate, sft and opponent, measured on these prompts.
        kl: n estimates of KL(candidate || SFT), in nats an answer.
        opponent: which model it is.
        perplexity: of the demonstrated answers, under candidate and SFT.
        best_of_sft: the best of n answers of SFT.
        points: the candidate along its training, on prompts of their own.
        resampling: how intervals are drawn.
        llm_judge: what an LLM judge made of it, where one is set.
    """
    candidate, sft = models["candidate"], models["sft"]
    cut = cut_answers(sft.scores.training, sft.answers.ended)
    rivals = {f"vs_{name}": model for name, model in models.items() if name != "candidate"}
    described = {name: model_figures(prompts, model) for name, model in models.items()}
    figures = {
        "prompts": len(prompts),
        **_conversations(resampling),
        "with_references": len(candidate.referenced),
        **described,
        "opponent": {"name": opponent.name, "version": opponent.version} | described["opponent"],
        **win_rates(models, rivals, resampling),
        "length_controlled_win_rate": {
            name: length_controlled_win_rate(
                candidate.scores.training,
                rival.scores.training,
                candidate.answers.lengths,
                rival.answers.lengths,
                resampling,
            )
            for name, rival in rivals.items()
        },
        "difference": {name: _differences(candidate, rival, resampling) for name, rival in rivals.items()},
        "kl": {"mean": mean(kl), "standard_error": standard_error(kl, resampling.groups(len(kl)))},
        "perplexity": dict(perplexity),
        "best_of_sft": [
            {"n": each.n, "kl": each.kl, **curve_figures(each.scores, each.wins, resampling)} for each in best_of_sft
        ],
        "over_optimisation": over_optimisation_curve(points, resampling),
        "categories": by_category(prompts, models, resampling),
        "confidence": resampling.confidence,
        "methods": _methods(prompts, candidate),
        **({"llm_judge": llm_judge} if llm_judge is not None else {}),
        **({"sft_cut_answers": cut} if cut else {}),
    }
    return parsed(rounded(figures), Evaluation, EVALUATION)


def _conversations(resampling: Resampling) -> dict[str, int]:
    """Count the conversations that the prompts are turns of; nothing where each is its own."""
    names = resampling.conversations or ()
    return {"conversations": len(set(names))} if len(set(names)) < len(names) else {}


def response_rows(
    prompts: Sequence[Prompt], models: Mapping[str, Measured], kl: Sequence[float] | None
) -> Iterator[dict[str, Any]]:
    """Give a row a prompt: what each model answered, with its figures.

    Args:
        prompts: n prompts.
        models: candidate, sft and opponent, measured on these prompts.
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


def readable(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give a row of responses without nesting, for a table: the prompt, then each model's answer and its reward."""
    columns = {"prompt": row["prompt"][-1]["content"]}
    for name in ("candidate", "sft", "opponent"):
        columns |= {name: row[name]["answer"], f"{name} reward": row[name]["reward"]}
    return columns


def _row(model: Measured, place: int) -> dict[str, Any]:
    answers, likeness, scores = model.answers, model.likenesses[place], model.scores
    return {
        "answer": answers.texts[place],
        "reward": scores.training[place],
        "length": answers.lengths[place],
        **({"held_out": scores.held_out[place]} if scores.held_out is not None else {}),
        "ended": answers.ended[place],
        "repetition": model.repetitions[place],
        **(likeness._asdict() if likeness else {}),
        "training": {name: values[place] for name, values in scores.components.items()},
        "ground_truth": {name: values[place] for name, values in scores.ground_truth.items()},
    }


def _differences(ours: Measured, theirs: Measured, resampling: Resampling) -> dict[str, Any]:
    """Candidate minus the other, by prompt, of every figure that is a mean over prompts."""
    pairs: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        "reward": (ours.scores.training, theirs.scores.training),
        "held_out": (ours.scores.held_out or [], theirs.scores.held_out or []),
        "length": (ours.answers.lengths, theirs.answers.lengths),
        "eos_rate": (ours.answers.ended, theirs.answers.ended),
        "repetition": (ours.repetitions, theirs.repetitions),
        "rouge_l": (ours.reference_scores, theirs.reference_scores),
    }
    draws = {"rouge_l": resampling.at(ours.referenced)}
    ground_truth = {
        name: _difference(values, theirs.scores.ground_truth[name], resampling)
        for name, values in ours.scores.ground_truth.items()
    }
    found = {name: _difference(*pair, draws.get(name, resampling)) for name, pair in pairs.items()}
    return {**found, "ground_truth": ground_truth}


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
