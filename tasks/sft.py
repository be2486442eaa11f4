"""Reads data/validate and models/base, writes models/sft, metrics/sft.json and curves/sft.csv.

Supervised fine-tuning maximises the likelihood of the demonstrated answers, given their prompts.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from tasks.common.files import MODELS, VALIDATED
from tasks.data.encoding.encoded import EncodedRows, encoded_demonstrations
from tasks.data.encoding.tokens import Encoded, load_tokenizer
from tasks.data.records import Split
from tasks.learning import processes
from tasks.learning.batches import collate, require_rows
from tasks.learning.held_out import HeldOut, row_batches
from tasks.learning.maths.losses import sft_loss
from tasks.learning.models.forward import compute_device
from tasks.learning.models.loading import context_length, load_policy, set_up, with_adapters
from tasks.learning.models.outputs import completion_log_probs, token_outputs
from tasks.learning.sharding import measurable
from tasks.learning.training.curves import publish
from tasks.learning.training.supervised import SupervisedTrainer
from tasks.registry.dvc_outputs.stages import stage_fingerprint
from tasks.registry.mlflow_runs import tracking
from tasks.settings.fingerprint import content_fingerprint
from tasks.settings.params import Params
from tasks.stage import main

BASE = MODELS / "base"
DEMONSTRATIONS = VALIDATED / "demonstrations.jsonl"


class Likelihood(NamedTuple):
    """How well a policy predicts answers, per token."""

    loss: float  # mean negative log-likelihood, nats a token
    perplexity: float  # exp(loss)
    accuracy: float  # share of tokens that had the highest probability


def sft(params: Params) -> None:
    """Fine-tune the base model on the demonstrations.

    Raises:
        InputError: a split is empty, a row does not fit the model, or training no longer gives numbers.
    """
    device = set_up(params)
    tokenizer = load_tokenizer(BASE)
    policy = with_adapters(load_policy(BASE, params, trainable=True), params.lora)

    def rows_of(split: Split) -> EncodedRows[Encoded]:
        found = encoded_demonstrations(VALIDATED, split, tokenizer, context_length(policy))
        return require_rows(found, DEMONSTRATIONS, split)

    rows, validation = rows_of("train"), rows_of("validation")
    held_out = row_batches(validation, params.runtime.max_tokens_per_micro_batch, device)
    fingerprint = stage_fingerprint("sft") or content_fingerprint("sft", params, [DEMONSTRATIONS, BASE])
    with tracking.run("sft", params, inputs=[DEMONSTRATIONS]) as run:
        trainer = SupervisedTrainer(
            "sft", fingerprint, policy, rows.lengths.tolist(), params=params, settings=params.sft, run=run, epsilon=1e-8
        )
        before = likelihood(policy, held_out, "sft: held-out rows before")
        sft_training_loop(trainer, policy, rows)
        policy = measurable(policy)
        after = likelihood(policy, held_out, "sft: held-out rows after")
        trainer.check({"held-out loss": after.loss})
        metrics = {
            "rows": len(rows),
            "tokens": int(rows.counts[:, 1].sum()),
            **trainer.summary(),
            "validation": {"rows": len(validation), "before": before._asdict(), "after": after._asdict()},
        }
        publish("sft", policy, tokenizer, metrics=metrics, curve=trainer.curve, run=run)
    trainer.finish()


def sft_training_loop(trainer: SupervisedTrainer, policy: nn.Module, rows: Sequence[Encoded]) -> None:
    """Minimise the negative log-likelihood of the completions, averaged over the tokens of a step."""
    for step in trainer.steps():
        token_count = sum(len(rows[item].completion) for item in step.items)
        with step.attempt():
            for micro_batch in step.micro_batches:
                batch = collate([rows[index] for index in micro_batch.items], compute_device(policy))
                log_probs = completion_log_probs(policy, batch)
                step.backward(micro_batch, {"loss": sft_loss(log_probs, batch.completion_mask, token_count)})


@torch.no_grad()
def likelihood(policy: nn.Module, held_out: HeldOut, title: str) -> Likelihood:
    """Measure a policy on answers it was not trained on, in fp32; `title` names the progress bar."""
    sums = {"nats": 0.0, "hits": 0, "count": 0}
    for batch, group in held_out.tracked(title):
        tokens = token_outputs(policy, batch)
        if group.weight:
            sums["nats"] -= tokens.log_probs.sum().item()
            sums["hits"] += int(tokens.are_likeliest.sum())
            sums["count"] += int(batch.completion_mask.sum())
    nats, hits, count = processes.summed(sums).values()
    return Likelihood(nats / count, math.exp(nats / count), hits / count)


if __name__ == "__main__":
    main(sft)
