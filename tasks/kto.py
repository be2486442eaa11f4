"""Reads data/validate and models/sft, writes models/kto, its metrics, curve and answers along the way.

Kahneman-Tversky optimisation: the policy learns from single answers that people found good or bad, without pairs, a
reward model or sampling, held to the SFT model.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.common.files import MODELS, VALIDATED
from tasks.common.lazy import LazySequence
from tasks.data.encoding.encoded import encoded_ratings
from tasks.data.encoding.tokens import Encoded, load_tokenizer
from tasks.data.records import Split, read_prompts, read_ratings
from tasks.learning import processes
from tasks.learning.batches import require_rows
from tasks.learning.evaluation_points import EvaluationPoints
from tasks.learning.kto.mismatched import mismatched
from tasks.learning.kto.rated_losses import rated_loss, reference_point
from tasks.learning.models.forward import compute_device
from tasks.learning.models.loading import context_length, load_policy, set_up, with_adapters
from tasks.learning.processes import MicroBatch
from tasks.learning.reference_cache import (
    Item,
    ReferenceCache,
    all_logps,
    check_first_ratios,
    collate_items,
    item_logps,
)
from tasks.learning.sharding import measurable
from tasks.learning.training.curves import publish
from tasks.learning.training.supervised import SupervisedTrainer, TrainingStep
from tasks.registry.dvc_outputs.stages import stage_fingerprint
from tasks.registry.mlflow_runs import tracking
from tasks.settings.fingerprint import content_fingerprint
from tasks.settings.params import Kto, Params
from tasks.stage import main

SFT = MODELS / "sft"
RATINGS, PROMPTS = VALIDATED / "ratings.jsonl", VALIDATED / "prompts.jsonl"
# At the first step policy and reference are one model in the same micro-batches: any difference is an error. As large
# as the one that DPO takes, 1e-4, which is of a reward with a beta of 0.1.
# Ethayarajh et al. 2024, section 4.2: what good and bad answers weigh together should be about equal.
LARGEST_IMBALANCE = 4 / 3
logger = logging.getLogger(__name__)


class Rated(NamedTuple):
    """N rated answers, and the answers to other prompts that the KL is estimated on."""

    answers: Sequence[Item]  # each of one row
    others: Sequence[Item]  # of the same prompts, in the same order
    is_desirable: Tensor  # (N,) bool
    lengths: list[int]  # tokens of the longer of the two rows


class RatedLogps(NamedTuple):
    """Log-probabilities of rated answers and of those to other prompts, summed over their tokens."""

    answers: Tensor  # (N,)
    others: Tensor | None  # (N,); None where no loss compares with them


class Answers(NamedTuple):
    """Some rated answers under both models."""

    logps: Tensor  # (B,) under the policy; carry the gradient
    reference: Tensor  # (B,)
    is_desirable: Tensor  # (B,) bool


class RatedMetrics(NamedTuple):
    """Loss and metrics of some answers, as their part of the mean over a step: those of its micro-batches add up."""

    loss: Tensor
    reward: Tensor  # mean implicit reward of good answers minus that of bad ones
    rewards_desirable: Tensor
    rewards_undesirable: Tensor
    accuracy: Tensor  # share of answers on their own side of the reference point
    logps_desirable: Tensor
    logps_undesirable: Tensor
    kl: Tensor  # the reference point, nats an answer


class StepCounts(NamedTuple):
    """What the sums over a step are divided by."""

    answers: int
    desirable: int  # at least 1, so that the mean of none is 0
    undesirable: int  # likewise

    @classmethod
    def of(cls, is_desirable: Tensor) -> "StepCounts":
        """Count the answers of a step."""
        count, good = len(is_desirable), int(is_desirable.sum())
        return cls(count, max(good, 1), max(count - good, 1))


def kto(params: Params) -> None:
    """Align the SFT model with the rated answers.

    Raises:
        InputError: a split is empty or has one prompt alone, a row does not fit the model, or training no longer gives
            numbers.
    """
    set_up(params)
    settings = params.kto
    tokenizer = load_tokenizer(SFT)
    policy = with_adapters(load_policy(SFT, params, trainable=True), params.lora)
    device, context = compute_device(policy), context_length(policy)

    def rated_of(split: Split) -> Rated:
        found = require_rows(encoded_ratings(VALIDATED, split, tokenizer, context), RATINGS, split)
        is_desirable = torch.tensor([rating.desirable for rating in read_ratings(VALIDATED, split)], device=device)
        return rated(found, is_desirable, context)

    train, validation = rated_of("train"), rated_of("validation")
    check_balance(train.is_desirable, settings)
    prompts = require_rows(read_prompts(VALIDATED, "validation"), PROMPTS, "validation")
    evaluation_points = EvaluationPoints(policy, tokenizer, prompts, settings, params, temperature=1.0)
    fingerprint = stage_fingerprint("kto") or content_fingerprint("kto", params, [RATINGS, PROMPTS, SFT])
    with tracking.run("kto", params, inputs=[RATINGS]) as run:
        trainer = SupervisedTrainer(
            "kto",
            fingerprint,
            policy,
            train.lengths,
            params=params,
            settings=settings,
            run=run,
            callback=evaluation_points,
        )
        held_out = processes.groups_of_rank(validation.lengths, params.runtime.max_tokens_per_micro_batch)
        # Before training the policy is the reference, with or without adapters: no second model is loaded.
        cache = ReferenceCache(SFT, are_compiled=params.runtime.compile)
        groups, title = list(trainer.first_epoch()), "kto: reference"
        of_answers = cache.logps(policy, train.answers, groups, title=title)[0]
        of_others = None  # apo_zero compares with none
        if settings.loss == "kto":
            of_others = cache.logps(policy, train.others, groups, title=title)[0]
        before = [cache.logps(policy, items, held_out, title=title)[0] for items in validation[:2]]
        kto_training_loop(trainer, policy, train, RatedLogps(of_answers, of_others), settings)
        policy = measurable(policy)
        after = [all_logps(policy, items, held_out, title="kto: validation")[0] for items in validation[:2]]
        at_first, at_last = (
            held_out_metrics(logps, before, validation.is_desirable, settings) for logps in (before, after)
        )
        trainer.check({"held-out loss": at_last["loss"]})
        metrics = {
            "ratings": len(train.lengths),
            "desirable": int(train.is_desirable.sum()),
            "tokens": sum(len(row.completion) for [row] in train.answers),
            **trainer.summary(),
            "validation": {"ratings": len(validation.lengths), "before": at_first, "after": at_last},
        }
        evaluation_points.write("kto")
        publish("kto", policy, tokenizer, metrics=metrics, curve=trainer.curve, run=run)
    trainer.finish()


def rated(rows: Sequence[Encoded], is_desirable: Tensor, context: int | None) -> Rated:
    """Put each rated answer beside the answer to another prompt, for a model with room for `context` tokens."""
    others = mismatched(rows, context)
    lengths = [max(own.length, other.length) for own, other in zip(rows, others, strict=True)]
    return Rated(single(rows), single(others), is_desirable, lengths)


def single(rows: Sequence[Encoded]) -> LazySequence[Item]:
    """Give each row as an item of one."""
    return LazySequence(len(rows), lambda number: (rows[number],))


def check_balance(is_desirable: Tensor, settings: Kto) -> None:
    """Say where good and bad answers do not weigh about the same, which the loss assumes."""
    good, bad = int(is_desirable.sum()), int((~is_desirable).sum())
    weight = settings.desirable_weight * good, settings.undesirable_weight * bad
    if not min(weight) or max(weight) / min(weight) > LARGEST_IMBALANCE:
        rarer = "desirable_weight" if weight[0] < weight[1] else "undesirable_weight"
        cure = f"; {max(weight) / min(weight) * getattr(settings, rarer):.3g} would" if min(weight) else ""
        logger.warning(
            "kto: %d answers are good and %d bad, which kto.%s %g does not balance%s",
            good,
            bad,
            rarer,
            getattr(settings, rarer),
            cure,
        )


def kto_training_loop(
    trainer: SupervisedTrainer, policy: nn.Module, train: Rated, reference: RatedLogps, settings: Kto
) -> None:
    """Minimise the loss, averaged over the answers of a step; `reference` is of all answers."""
    number, point = 0, torch.zeros((), device=reference.answers.device)
    for step in trainer.steps():
        counts = StepCounts.of(train.is_desirable[step.items])
        # That of the whole step, whatever its micro-batches are; one that is taken again has it already.
        if step.number != number and reference.others is not None:
            number, point = step.number, point_of(step, trainer, policy, train.others, reference.others)
        with step.attempt():
            for micro_batch in step.micro_batches:
                items = micro_batch.items
                known = reference.answers[items], train.is_desirable[items]  # before the pass, as in dpo
                answers = Answers(batch_logps(policy, train.answers, items), *known)
                if step.number == 1:
                    lengths = completion_lengths(train.answers, items)
                    check_first_ratios(policy, answers.logps, answers.reference, lengths)
                step.backward(micro_batch, rated_metrics(answers, point, counts, settings)._asdict())


def point_of(
    step: TrainingStep, trainer: SupervisedTrainer, policy: nn.Module, others: Sequence[Item], reference: Tensor
) -> Tensor:
    """Estimate the KL of a step's prompts, on answers to other prompts and their log-probabilities (N,)."""

    def log_ratios(micro_batches: Sequence[MicroBatch]) -> Tensor:
        total = torch.zeros((), device=reference.device)
        with torch.no_grad():
            for items, weight in micro_batches:
                known = reference[items]
                total.add_((batch_logps(policy, others, items) - known).sum(), alpha=weight)
        return total

    total: Tensor = trainer.summed(step.items, log_ratios)
    return reference_point(total, len(step.items))


def batch_logps(policy: nn.Module, items: Sequence[Item], indices: Sequence[int]) -> Tensor:
    """Log-probabilities (B,) of some answers, in fp32."""
    batch = collate_items([items[index] for index in indices], compute_device(policy))
    return item_logps(policy, batch, 1).squeeze(0)


def completion_lengths(items: Sequence[Item], indices: Sequence[int]) -> Tensor:
    """Tokens of some answers, (B,)."""
    return torch.tensor([len(items[index][0].completion) for index in indices])


def rated_metrics(answers: Answers, point: Tensor, counts: StepCounts, settings: Kto) -> RatedMetrics:
    """Loss and metrics of some answers, as their part of a step of `counts` with its reference point."""
    ratios, is_desirable = answers.logps - answers.reference, answers.is_desirable
    loss = rated_loss(
        ratios,
        is_desirable,
        point,
        counts.answers,
        settings.loss,
        beta=settings.beta,
        desirable_weight=settings.desirable_weight,
        undesirable_weight=settings.undesirable_weight,
    )

    def means(values: Tensor) -> tuple[Tensor, Tensor]:
        good, bad = torch.where(is_desirable, values, 0.0).sum(), torch.where(is_desirable, 0.0, values).sum()
        return good / counts.desirable, bad / counts.undesirable

    good_reward, bad_reward = means(settings.beta * ratios)
    is_right = torch.where(is_desirable, ratios > point, ratios < point)  # at the point it is on neither side
    return RatedMetrics(
        loss,
        good_reward - bad_reward,
        good_reward,
        bad_reward,
        is_right.sum() / counts.answers,
        *means(answers.logps),
        kl=point * len(ratios) / counts.answers,
    )


def held_out_metrics(
    logps: Sequence[Tensor], reference: Sequence[Tensor], is_desirable: Tensor, settings: Kto
) -> dict[str, float]:
    """Mean metrics over answers, in fp32; of both models (N,) for the answers and for those to other prompts."""
    point = reference_point((logps[1] - reference[1]).sum(), len(is_desirable))
    answers = Answers(logps[0], reference[0], is_desirable)
    metrics = rated_metrics(answers, point, StepCounts.of(is_desirable), settings)
    return {name: value.item() for name, value in metrics._asdict().items()}


if __name__ == "__main__":
    main(kto)
