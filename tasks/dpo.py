"""Reads the valid pairs, of people and AI, and models/sft, writes models/dpo, its metrics, curve and answers.

Direct preference optimisation: the policy learns from pairs without a reward model or sampling, held to the SFT model.
Pairs of a reward or a judge (ai_preferences) are learned beside those of people, which alone measure what is learned.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.common.files import MODELS, VALIDATED
from tasks.data.encoding.encoded import CountedRows, encoded_preferences, joined
from tasks.data.encoding.tokens import EncodedPair, load_tokenizer
from tasks.data.records import PAIRS, Split, read_pair_weights, read_prompts, validated_folder
from tasks.learning import processes
from tasks.learning.batches import collate_pairs, require_rows
from tasks.learning.dpo.preference_losses import implicit_rewards, preference_loss
from tasks.learning.evaluation_points import EvaluationPoints
from tasks.learning.maths.pairs import PairValues
from tasks.learning.models.forward import compute_device
from tasks.learning.models.loading import context_length, load_policy, set_up, with_adapters
from tasks.learning.reference_cache import ReferenceCache, all_logps, check_first_ratios, item_logps
from tasks.learning.sharding import measurable
from tasks.learning.training.curves import publish
from tasks.learning.training.supervised import SupervisedTrainer
from tasks.registry.dvc_outputs.stages import stage_fingerprint
from tasks.registry.mlflow_runs import tracking
from tasks.settings.fingerprint import content_fingerprint
from tasks.settings.params import Dpo, Params
from tasks.stage import main

SFT = MODELS / "sft"
PREFERENCES, AI_PREFERENCES = (validated_folder(kind) / f"{kind}.jsonl" for kind in PAIRS)
PROMPTS = VALIDATED / "prompts.jsonl"
# At the first step policy and reference are one model in the same micro-batches: any difference is an error.


class PairMetrics(NamedTuple):
    """Loss and metrics of some pairs, as their part of the mean over a step: those of its micro-batches add up."""

    loss: Tensor
    reward: Tensor  # mean margin of the implicit rewards
    rewards_chosen: Tensor
    rewards_rejected: Tensor
    accuracy: Tensor  # share of pairs with a margin above 0: ties are no wins
    logps_chosen: Tensor
    logps_rejected: Tensor
    nll_chosen: Tensor  # nats per token


class StepCounts(NamedTuple):
    """What the sums over a step are divided by."""

    pairs: int
    chosen_tokens: int
    weight: float  # of the pairs in the loss


def dpo(params: Params) -> None:
    """Align the SFT model with the preference pairs.

    Raises:
        InputError: a split is empty, a row does not fit the model, or training no longer gives numbers.
    """
    set_up(params)
    settings = params.dpo
    tokenizer = load_tokenizer(SFT)
    policy = with_adapters(load_policy(SFT, params, trainable=True), params.lora)

    def pairs_of(split: Split) -> CountedRows[EncodedPair]:
        context = context_length(policy)
        own, extra = (encoded_preferences(validated_folder(kind), split, tokenizer, context, kind) for kind in PAIRS)
        return joined([require_rows(own, PREFERENCES, split), extra])

    pairs, validation = pairs_of("train"), pairs_of("validation")
    weights, validation_weights = (weights_of(split, compute_device(policy)) for split in ("train", "validation"))
    prompts = require_rows(read_prompts(VALIDATED, "validation"), PROMPTS, "validation")
    evaluation_points = EvaluationPoints(policy, tokenizer, prompts, settings, params, temperature=1.0)
    fingerprint = stage_fingerprint("dpo") or content_fingerprint(
        "dpo", params, [PREFERENCES, AI_PREFERENCES, PROMPTS, SFT]
    )
    with tracking.run("dpo", params, inputs=[PREFERENCES, AI_PREFERENCES]) as run:
        lengths, validation_lengths = ((2 * each.lengths).tolist() for each in (pairs, validation))
        trainer = SupervisedTrainer(
            "dpo", fingerprint, policy, lengths, params=params, settings=settings, run=run, callback=evaluation_points
        )
        held_out = processes.groups_of_rank(validation_lengths, params.runtime.max_tokens_per_micro_batch)
        # Before training the policy is the reference, with or without adapters: no second model is loaded.
        reference_cache = ReferenceCache(SFT, are_compiled=params.runtime.compile)
        title = "dpo: reference"
        reference = PairValues(*reference_cache.logps(policy, pairs, list(trainer.first_epoch()), title=title))
        logps_before = PairValues(*reference_cache.logps(policy, validation, held_out, title=title))
        dpo_training_loop(trainer, policy, pairs, reference, settings, weights=weights)
        policy = measurable(policy)
        logps_after = PairValues(*all_logps(policy, validation, held_out, title="dpo: validation"))
        before, after = (
            held_out_metrics(logps, logps_before, validation, settings, weights=validation_weights)
            for logps in (logps_before, logps_after)
        )
        trainer.check({"held-out loss": after["loss"]})
        metrics = {
            "pairs": len(pairs),
            "tokens": int(pairs.counts[:, 1:].sum()),
            **trainer.summary(),
            "validation": {"pairs": len(validation), "before": before, "after": after},
        }
        evaluation_points.write("dpo")
        publish("dpo", policy, tokenizer, metrics=metrics, curve=trainer.curve, run=run)
    trainer.finish()


def weights_of(split: Split, device: torch.device) -> Tensor | None:
    """Give the weights (N,) of a split's pairs; None where each counts 1."""
    weights = [each for kind in PAIRS for each in read_pair_weights(validated_folder(kind), split, kind).weights]
    return torch.tensor(weights, device=device) if {*weights} != {1.0} else None


def dpo_training_loop(
    trainer: SupervisedTrainer,
    policy: nn.Module,
    pairs: Sequence[EncodedPair],
    reference: PairValues,
    settings: Dpo,
    *,
    weights: Tensor | None = None,
) -> None:
    """Minimise the preference loss, averaged over the pairs of a step; `reference` and `weights` are of all pairs."""
    for step in trainer.steps():
        weight = float(len(step.items)) if weights is None else float(weights[step.items].sum())
        counts = StepCounts(len(step.items), sum(len(pairs[item].chosen.completion) for item in step.items), weight)
        with step.attempt():
            for micro_batch in step.micro_batches:
                batch = collate_pairs([pairs[index] for index in micro_batch.items], compute_device(policy))
                # Before the pass: to choose by a list waits for a GPU.
                reference_logps = PairValues(*(values[micro_batch.items] for values in reference))
                of_batch = None if weights is None else weights[micro_batch.items]
                logps = PairValues(*item_logps(policy, batch, 2))
                tokens = PairValues(*batch.completion_mask.sum(dim=1).chunk(2))
                metrics = pair_metrics(logps, reference_logps, tokens, counts, settings, weights=of_batch)
                if step.number == 1 and settings.loss != "simpo":  # which has no reference
                    check_first_ratios(policy, *(torch.cat(each) for each in (logps, reference_logps, tokens)))
                step.backward(micro_batch, metrics._asdict())


def pair_metrics(
    logps: PairValues,
    reference: PairValues,
    tokens: PairValues,
    counts: StepCounts,
    settings: Dpo,
    *,
    weights: Tensor | None = None,
) -> PairMetrics:
    """Loss and metrics of some pairs, as their part of a step of `counts`.

    Args:
        logps: under the policy; carry the gradient.
        reference: under the reference.
        tokens: lengths of the completions.
        counts: of the step.
        settings: of the loss.
        weights: (B,) of the pairs in the loss, which other metrics do not heed; None: each counts 1.
    """
    rewards = implicit_rewards(logps, reference, tokens, settings.loss, settings.beta)
    loss = preference_loss(
        rewards.margins,
        weights,
        counts.weight,
        settings.loss,
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        simpo_gamma=settings.simpo_gamma,
    )
    nll = -logps.chosen.sum() / counts.chosen_tokens
    return PairMetrics(
        loss=loss + settings.nll_weight * nll,
        reward=rewards.margins.sum() / counts.pairs,
        rewards_chosen=rewards.chosen.sum() / counts.pairs,
        rewards_rejected=rewards.rejected.sum() / counts.pairs,
        accuracy=(rewards.margins > 0).sum() / counts.pairs,
        logps_chosen=logps.chosen.sum() / counts.pairs,
        logps_rejected=logps.rejected.sum() / counts.pairs,
        nll_chosen=nll,
    )


def held_out_metrics(
    logps: PairValues,
    reference: PairValues,
    pairs: Sequence[EncodedPair],
    settings: Dpo,
    *,
    weights: Tensor | None = None,
) -> dict[str, float]:
    """Mean metrics over pairs, in fp32."""
    lengths = [[len(row.completion) for row in pair] for pair in pairs]
    tokens = PairValues(*torch.tensor(lengths, device=logps.chosen.device).unbind(dim=1))
    weight = float(len(pairs)) if weights is None else float(weights.sum())
    counts = StepCounts(len(pairs), int(tokens.chosen.sum()), weight)
    metrics = pair_metrics(logps, reference, tokens, counts, settings, weights=weights)
    return {name: value.item() for name, value in metrics._asdict().items()}


if __name__ == "__main__":
    main(dpo)
