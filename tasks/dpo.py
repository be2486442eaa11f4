"""Reads data/validate and models/sft, writes models/dpo, its metrics, curve and answers along the way.

Direct preference optimisation: the policy learns from pairs without a reward model or sampling, held to the SFT model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tasks.common.files import MODELS, VALIDATED
from tasks.data.encoding.encoded import EncodedRows, encoded_preferences
from tasks.data.encoding.tokens import EncodedPair, load_tokenizer
from tasks.data.records import Split, read_prompts
from tasks.learning import processes
from tasks.learning.batches import collate_pairs, micro_batches
from tasks.learning.dpo.preference_losses import implicit_rewards, preference_loss
from tasks.learning.dpo.reference_cache import References, all_logps, pair_logps
from tasks.learning.maths.pairs import PairValues
from tasks.learning.models.forward import unwrapped
from tasks.learning.models.loading import context_length, load_policy, merged, set_up, with_adapters
from tasks.learning.sharding import assembled
from tasks.learning.training.curves import publish
from tasks.learning.training.evaluation_points import Marks
from tasks.learning.training.supervised import Fit, require_rows
from tasks.registry.dvc_outputs.stages import stage_origin
from tasks.registry.mlflow_runs import tracking
from tasks.settings.fingerprint import content_origin
from tasks.settings.params import Dpo, Params
from tasks.stage import main

SFT = MODELS / "sft"
PREFERENCES, PROMPTS = VALIDATED / "preferences.jsonl", VALIDATED / "prompts.jsonl"
# Policy and reference are the same model at the first step, seen in the same batches: nothing but equality will do.
LARGEST_FIRST_REWARD = 1e-4


class Figures(NamedTuple):
    """What is known of some pairs, as their part of the mean over a step: the parts of a step add up."""

    loss: Tensor
    reward: Tensor  # mean margin of the implicit rewards
    rewards_chosen: Tensor
    rewards_rejected: Tensor
    accuracy: Tensor  # share of pairs with a margin above 0: a tie is no win
    logps_chosen: Tensor
    logps_rejected: Tensor
    nll_chosen: Tensor  # nats a token


class Count(NamedTuple):
    """What the sums over a step are divided by."""

    pairs: int
    chosen_tokens: int


def dpo(params: Params) -> None:
    """Align the SFT model with the preference pairs.

    Raises:
        InputError: a split is empty, a row does not fit the model, or training no longer gives numbers.
    """
    set_up(params)
    settings = params.dpo
    tokenizer = load_tokenizer(SFT)
    policy = with_adapters(load_policy(SFT, params, trainable=True), params.lora)

    def pairs_of(split: Split) -> EncodedRows[EncodedPair]:
        found = encoded_preferences(VALIDATED, split, tokenizer, context_length(policy))
        return require_rows(found, PREFERENCES, split)

    pairs, validation = pairs_of("train"), pairs_of("validation")
    asked = require_rows(read_prompts(VALIDATED, "validation"), PROMPTS, "validation")
    marks = Marks(policy, tokenizer, asked, settings, params)
    origin = stage_origin("dpo") or content_origin("dpo", params, [PREFERENCES, PROMPTS, SFT])
    with tracking.run("dpo", params, inputs=[PREFERENCES]) as run:
        lengths, its_lengths = ((2 * each.lengths).tolist() for each in (pairs, validation))
        fit = Fit("dpo", origin, policy, lengths, params=params, settings=settings, run=run, visitor=marks)
        share = processes.share(range(len(validation)), its_lengths)
        held_out = list(micro_batches(share, its_lengths, params.runtime.max_tokens_per_micro_batch))
        # Nothing has been learned yet, so the policy is the reference: no second model, and adapters add nothing.
        references = References(SFT, are_compiled=params.runtime.compile)
        reference = references.logps(policy, pairs, list(fit.first_epoch()), fit.autocast)
        logps_before = references.logps(policy, validation, held_out)
        train(fit, policy, pairs, reference, settings)
        policy = merged(assembled(policy))
        logps_after = all_logps(policy, validation, held_out, title="dpo: validation")
        before, after = (
            held_out_figures(logps, logps_before, validation, settings) for logps in (logps_before, logps_after)
        )
        fit.check({"held-out loss": after["loss"]})
        metrics = {
            "pairs": len(pairs),
            "tokens": int(pairs.counts[:, 1:].sum()),
            **fit.summary(),
            "validation": {"pairs": len(validation), "before": before, "after": after},
        }
        marks.write("dpo")
        publish("dpo", policy, tokenizer, metrics=metrics, curve=fit.curve, run=run)
    fit.finish()


def train(
    fit: Fit,
    policy: nn.Module,
    pairs: Sequence[EncodedPair],
    reference: PairValues,
    settings: Dpo,
) -> None:
    """Minimise the preference loss, averaged over the pairs of a step."""
    for step, items, groups in fit.steps():
        with fit.attempt(step):
            count = Count(len(items), sum(len(pairs[item].chosen.completion) for item in items))
            for indices in groups:
                batch = collate_pairs([pairs[index] for index in indices], unwrapped(policy).device)
                with fit.autocast():
                    logps = pair_logps(policy, batch)
                held_to = PairValues(*(values[indices] for values in reference))
                tokens = PairValues(*batch.completion_mask.sum(dim=1).chunk(2))
                figures = figures_of(logps, held_to, tokens, count, settings)
                if step == 1:
                    check_first_rewards(figures, settings)
                fit.backward(figures._asdict())


def figures_of(logps: PairValues, reference: PairValues, tokens: PairValues, count: Count, settings: Dpo) -> Figures:
    """Loss and figures of some pairs, as their part of a step that holds `count`; `tokens` are their completions'."""
    rewards = implicit_rewards(logps, reference, tokens, settings.loss, settings.beta)
    loss = preference_loss(
        rewards.margins,
        count.pairs,
        settings.loss,
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        simpo_gamma=settings.simpo_gamma,
    )
    nll = -logps.chosen.sum() / count.chosen_tokens
    return Figures(
        loss=loss + settings.nll_weight * nll,
        reward=rewards.margins.sum() / count.pairs,
        rewards_chosen=rewards.chosen.sum() / count.pairs,
        rewards_rejected=rewards.rejected.sum() / count.pairs,
        accuracy=(rewards.margins > 0).sum() / count.pairs,
        logps_chosen=logps.chosen.sum() / count.pairs,
        logps_rejected=logps.rejected.sum() / count.pairs,
        nll_chosen=nll,
    )


def held_out_figures(
    logps: PairValues, reference: PairValues, pairs: Sequence[EncodedPair], settings: Dpo
) -> dict[str, float]:
    """Mean figures over pairs, in fp32."""
    counts = [[len(row.completion) for row in pair] for pair in pairs]
    tokens = PairValues(*torch.tensor(counts, device=logps.chosen.device).unbind(dim=1))
    figures = figures_of(logps, reference, tokens, Count(len(pairs), int(tokens.chosen.sum())), settings)
    return {name: figure.item() for name, figure in figures._asdict().items()}


def check_first_rewards(figures: Figures, settings: Dpo) -> None:
    """Before the first step policy and reference are one model, so every implicit reward is 0 (SimPO has no reference).

    Raises:
        AssertionError: they are not; training would be held to another model than it claims.
    """
    largest = max(abs(figures.rewards_chosen.item()), abs(figures.rewards_rejected.item()))
    if settings.loss != "simpo" and largest > LARGEST_FIRST_REWARD:
        raise AssertionError(f"rewards of {largest} before the first step: policy and reference differ")


if __name__ == "__main__":
    main(dpo)
