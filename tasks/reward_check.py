"""Reads metrics/reward.json, data/validate, reward functions and models, writes metrics/reward_check.json and a pass.

The check of the rewards before PPO learns from them: a policy finds every weakness of its reward. The policy depends on
the pass, data/reward_check/passed.json, and not on the figures, so that a changed threshold trains nothing again.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tasks.common.errors import InputError, quoted
from tasks.common.files import MODELS, VALIDATED, write_json
from tasks.common.record import write_record
from tasks.common.rounding import number
from tasks.data.encoding.context import context_of
from tasks.data.encoding.tokens import encode_prompt, load_tokenizer
from tasks.data.reasoning import references_without_reasoning, without_reasoning
from tasks.data.records import Prompt, read_prompts
from tasks.evaluation.compare import Resampling
from tasks.evaluation.gate.reward_models import baseline_sentence, baselines_not_beaten, shared_pairs
from tasks.evaluation.perturbed import Scored, perturbation_figures, satisfied_by
from tasks.evaluation.prompts import conversations_of
from tasks.evaluation.reward_check_record import KINDS, REWARD_CHECK, RewardCheck, RewardPerturbations
from tasks.evaluation.reward_figures import REWARD, AccuracyInterval, RewardModelFigures, read_reward_model
from tasks.learning.answering.reward_model import ModelReward
from tasks.learning.models.loading import load_scorer, set_up
from tasks.learning.ppo.advantages import standardised_in_groups
from tasks.learning.ppo.rewards import weighted_sum
from tasks.methods import METHODS
from tasks.rewards.answered import Answered, Reward, answered
from tasks.rewards.copies import TRAINING, read_copies
from tasks.rewards.perturbations import PERTURBATIONS, REFERENCE, SAY_NOTHING
from tasks.settings.params import Params
from tasks.stage import main

PASSED = Path("data/reward_check/passed.json")
CASES = 3  # that a message shows
logger = logging.getLogger(__name__)


def reward_check(params: Params) -> None:
    """Stop the pipeline where PPO would learn from rewards that say nothing, or that an answer of nothing satisfies.

    A method that does not learn from them is not stopped: the gate checks the reward model before its candidate is
    promoted.

    Raises:
        InputError: the lower bound of the reward model's held-out accuracy is below the gate's threshold; the model
            does not beat the baselines though it must; or empty answers, repeated prompts or a sentinel sentence score
            as high as references by the weighted sum of the rewards, and `reward_check.on_failure` is stop.
    """
    figures = read_reward_model(REWARD)
    learns_from_rewards = "rewards" in METHODS[params.align.method].learns_from
    functions = [reward.name for reward in params.rewards.training if learns_from_rewards and not reward.is_model]
    check = RewardCheck(
        learned_from=learns_from_rewards and figures is not None,
        functions=functions,
        prompts=0,
        without_references=0,
        weighted_sum=None,
        rewards={},
    )
    if learns_from_rewards:
        _check_accuracy(figures, params)
        _check_baselines(figures, is_required=params.gate.reward_beats_baselines)
        check = _checked(check, params)
    write_record(REWARD_CHECK, check)
    write_json(PASSED, {"learned_from": check.learned_from, "functions": functions})


def _check_accuracy(figures: RewardModelFigures | None, params: Params) -> None:
    threshold = params.gate.min_reward_accuracy
    if figures and (figures.accuracy.low is None or figures.accuracy.low < threshold):
        cure = "give more or cleaner pairs, train it better (reward), or lower the threshold"
        raise InputError(
            f"{METHODS[params.align.method].title} would learn from a reward model that fails its check: "
            f"{described(figures)}; the lower bound of the accuracy must reach {threshold:g} "
            f"(gate.min_reward_accuracy): {cure}"
        )


def _check_baselines(figures: RewardModelFigures | None, *, is_required: bool) -> None:
    """Warn of a reward model that knows no more than length or words, or refuse it."""
    if figures is None:
        return
    for name in baselines_not_beaten(figures):
        sentence = baseline_sentence(figures, name)
        if is_required:
            cure = "give more or other pairs, train it better (reward), or set gate.reward_beats_baselines to false"
            raise InputError(f"{sentence.removesuffix('.')}: {cure}")
        logger.warning("%s", sentence)


def _checked(check: RewardCheck, params: Params) -> RewardCheck:
    """Score references and perturbed answers; refuse, or warn of, rewards that answers of nothing satisfy."""
    found = sorted(read_prompts(VALIDATED, "validation"), key=lambda prompt: prompt.id)
    prompts = [prompt for prompt in found if prompt.references][: params.reward_check.prompts]
    counts = {"prompts": len(prompts), "without_references": sum(not prompt.references for prompt in found)}
    if not prompts:
        logger.warning(
            "No validation prompt has a reference answer: whether the rewards tell good answers from empty ones could "
            "not be checked"
        )
        return check.model_copy(update=counts)
    kinds, rows = _answers(prompts, params)
    scores = {reward.name: reward(rows) for reward in _rewards(params)}
    total = _combined(scores, kinds, params)
    settings = params.evaluate
    resampling = Resampling(settings.bootstrap, settings.confidence, params.seed, conversations_of(prompts))
    of_sum = _figures(total, kinds, resampling)
    _refuse(of_sum, total, kinds, prompts, params)
    by_name = {name: _figures(of_reward, kinds, resampling) for name, of_reward in scores.items()}
    return check.model_copy(update=counts | {"weighted_sum": of_sum, "rewards": by_name})


Kinds = list[tuple[str, int]]  # of each answer, and the place of its prompt


def _combined(scores: Mapping[str, Sequence[float]], kinds: Kinds, params: Params) -> list[float]:
    """Combine the scores of all rewards as PPO would if it had sampled these answers."""
    tensors = {name: torch.tensor(of_one, dtype=torch.float64) for name, of_one in scores.items()}
    if params.rewards.combine == "normalise_then_sum":
        places = torch.tensor([place for _, place in kinds])
        for of_one in tensors.values():
            for place in {place for _, place in kinds}:
                group = places == place
                of_one[group] = standardised_in_groups(of_one[group], int(group.sum()))
    total: list[float] = weighted_sum(params.rewards.training, tensors).tolist()
    return total


def _answers(prompts: Sequence[Prompt], params: Params) -> tuple[Kinds, Answered]:
    """The first reference of each prompt, and perturbed answers; tokens as a policy would sample them."""
    texts = {REFERENCE: [prompt.references[0] for prompt in prompts]}
    texts |= {kind: perturb(prompts) for kind, perturb in PERTURBATIONS.items()}  # type: ignore[misc]
    found = [(kind, place, text) for kind, each in texts.items() for place, text in enumerate(each) if text is not None]
    tokenizer, context = load_tokenizer(MODELS / "sft"), context_of(MODELS / "sft")
    asked = [len(encode_prompt(tokenizer, prompt.prompt)) for prompt in prompts]

    def tokens(text: str, place: int) -> list[int]:
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        return ids if context is None else ids[: context - asked[place]]

    reasoning = params.base.reasoning
    given = [references_without_reasoning(prompts[place], reasoning) for _, place, _ in found]
    texts_given = [without_reasoning(text, reasoning) for *_, text in found]
    rows = answered(given, texts_given, [tokens(text, place) for _, place, text in found])
    return [(kind, place) for kind, place, _ in found], rows


def _rewards(params: Params) -> list[Reward]:
    """What the policy learns from, in the order of params.yaml."""
    functions = {function.name: function for function in read_copies(TRAINING)}
    set_up(params)

    def model(name: str) -> ModelReward:
        return ModelReward(name, load_scorer(MODELS / "reward", params), load_tokenizer(MODELS / "reward"), params)

    return [model(each.name) if each.is_model else functions[each.name] for each in params.rewards.training]


def _figures(scores: Sequence[float], kinds: Kinds, resampling: Resampling) -> RewardPerturbations:
    by_kind: dict[str, list[tuple[int, float]]] = {}
    for (kind, place), score in zip(kinds, scores, strict=True):
        by_kind.setdefault(kind, []).append((place, score))
    references = [score for _, score in by_kind.pop(REFERENCE)]
    perturbed = {kind: Scored(*zip(*pairs, strict=True)) for kind, pairs in by_kind.items()}
    return perturbation_figures(references, perturbed, resampling)


def _refuse(
    of_sum: RewardPerturbations,
    scores: Sequence[float],
    kinds: Kinds,
    prompts: Sequence[Prompt],
    params: Params,
) -> None:
    """Stop, or warn, where answers of nothing score as high as references, with cases."""
    satisfying = satisfied_by(of_sum, SAY_NOTHING)
    if not satisfying:
        return
    score_of = dict(zip(kinds, scores, strict=True))
    means = [f"{KINDS[kind]} has {number(of_sum.perturbations[kind].mean)}" for kind in satisfying]
    gains = sorted(
        (
            (score_of[REFERENCE, place] - score_of[kind, place], place, kind)
            for kind, place in kinds
            if kind in satisfying
        )
    )
    cases = [
        f"prompt {prompts[place].id}: {number(score_of[kind, place])} for {KINDS[kind]}, "
        f"{number(score_of[REFERENCE, place])} for {quoted(prompts[place].references[0])}"
        for _, place, kind in gains[:CASES]
    ]
    normalised = ", each normalised in its prompt's answers" if params.rewards.combine == "normalise_then_sum" else ""
    sentence = (
        f"{METHODS[params.align.method].title} would learn to say nothing: by the weighted sum of "
        f"rewards.training{normalised}, references of {len(prompts)} validation prompts have "
        f"{number(of_sum.mean)} on average, and {', '.join(means)} ({'; '.join(cases)})"
    )
    if params.reward_check.on_failure == "stop":
        raise InputError(
            f"{sentence}: repair the rewards (docs/rewards.md), or accept it with reward_check.on_failure: warn"
        )
    logger.warning(sentence)


def described(figures: RewardModelFigures) -> str:
    """Put the reward model's figures into one line."""
    source = weakest_source(figures)
    of_source = f" (weakest source: {source}, {_accuracy(figures.accuracy_by_source[source])})" if source else ""
    return (
        f"held-out accuracy {_accuracy(figures.accuracy)}{of_source}, calibration error "
        f"{number(figures.calibration_error)}, correlation with length {number(figures.length_correlation)}"
    )


def weakest_source(figures: RewardModelFigures) -> str | None:
    """Name the source whose pairs the model orders worst; None where no interval lies below that of all pairs."""
    below = figures.accuracy.low or 0.0
    bounds = [
        (found.high, name)
        for name, found in figures.accuracy_by_source.items()
        if found.high is not None and found.high < below
    ]
    return min(bounds)[1] if bounds else None


def _accuracy(accuracy: AccuracyInterval) -> str:
    value, low, high = (number(each) for each in (accuracy.value, accuracy.low, accuracy.high))
    shared = shared_pairs(accuracy).removesuffix(".").replace("The ", "; the ")
    return f"{value} [{low}, {high}] on {accuracy.pairs:,} pairs{shared}"


if __name__ == "__main__":
    main(reward_check)
