"""One iteration of PPO with every policy loss, aggregation and combination of rewards, on tiny models.

test_ppo_variants.py compares one process with two, which run this module and write what they learned to a file.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from tasks.learning import processes
from tasks.learning.ppo.missing_eos import missing_eos_penalty
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.settings.params import Params, TrainingReward
from tests.tiny import tiny_models, tiny_params

PROMPTS = [[4, 3], [5, 6, 3], [7, 3], [8, 9, 10, 3]]
SETTINGS: dict[str, Any] = {
    "rollouts": 8,
    "responses_per_prompt": 2,
    "num_minibatches": 2,
    "epochs": 2,
    "learning_rate": 1e-2,
    "entropy_bonus": 0.02,
    "clip": 0.02,
}
LOSSES = [
    ("clip", "token"),
    ("clip", "sequence"),
    ("clip", "constant"),
    ("gspo", "sequence"),
    ("cispo", "token"),
    ("cispo", "sequence"),
    ("cispo", "constant"),
]
VARIANTS: dict[str, dict[str, Any]] = {
    f"{kind}, {aggregation}": {"estimator": "rloo", "policy_loss": kind, "aggregation": aggregation}
    for kind, aggregation in LOSSES
}
for combine in ("sum", "normalise_then_sum"):
    VARIANTS[f"grpo, {combine}"] = {"estimator": "grpo", "kl_estimator": "k3", "combine": combine}


def params_of(variant: Mapping[str, Any], tokens: int) -> Params:
    given = {**SETTINGS, **variant}
    combine = given.pop("combine", "sum")
    params = tiny_params({"max_tokens_per_micro_batch": tokens}, **given)
    brevity = TrainingReward(name="brevity", source="mine.py:brevity", options={}, weight=0.3)
    training = [*params.rewards.training, brevity]
    return params.model_copy(
        update={"rewards": params.rewards.model_copy(update={"training": training, "combine": combine})}
    )


def trained(variant: Mapping[str, Any], tokens: int = 40) -> dict[str, Any]:
    """What an iteration learns from, its metrics and the weights after it."""
    params = params_of(variant, tokens)
    models = tiny_models()._replace(critic=None)
    trainer = PPOTrainer(models, params)
    responses = trainer.sample([prompt for prompt in PROMPTS for _ in range(2)], seed=1)
    brevity = torch.tensor([-float(len(response.row.completion)) for response in responses])
    scores = trainer.reward_scores(responses, {"brevity": brevity})
    penalty = missing_eos_penalty(params.ppo.missing_eos_penalty, trainer.observe(None, responses, scores))
    rollouts = trainer.score(responses, 0.05, scores, penalty)
    figures = trainer.update(rollouts, 1, "no checkpoint", 0.05)
    weights = torch.cat([weight.detach().flatten() for weight in models.policy.parameters()])
    return {
        "penalty": penalty,
        "learned": rollouts.learned_scores.tolist(),
        "advantages": rollouts.advantages[rollouts.mask].tolist(),
        "figures": figures,
        "weights": weights.tolist(),
    }


def main(file: str) -> None:
    processes.initialise(torch.device("cpu"))
    found = {name: trained(variant) for name, variant in VARIANTS.items()}
    if processes.is_main():
        Path(file).write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
