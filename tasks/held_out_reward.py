"""Reads data/validate and models/sft, writes models/held_out_reward, its metrics and its curve.

It has another seed than the reward model and learns from the pairs of the validation split, from which neither the
reward model nor DPO learns. An answer that only the reward model prefers exploits a weakness of it and
is no better (Gao et al. 2023, "Scaling laws for reward model overoptimization").
"""

from tasks.learning.reward_model.training import INPUTS, leave_untrained, train_reward_model
from tasks.learning.seeds import seed_for
from tasks.registry.dvc_outputs.stages import stage_fingerprint
from tasks.registry.mlflow_runs import tracking
from tasks.settings.params import Params
from tasks.stage import main


def held_out_reward(params: Params) -> None:
    """Train the held-out reward model and put its scores on a standard scale.

    Where PPO learns from functions only, nothing is trained.

    Raises:
        InputError: a split is empty, a row does not fit the model, or training no longer gives numbers.
    """
    if not params.rewards.use_model:
        leave_untrained("held_out_reward", tracking.run("held_out_reward", params, INPUTS))
        return
    # The stage's first name stays in its seed: with another one the same settings would give another model.
    other = params.model_copy(update={"seed": seed_for(params.seed, "judge", 0) % 2**31})
    train_reward_model(
        "held_out_reward",
        other,
        params.held_out_reward,
        learned_from="validation",
        watched="test",
        stopped_by="train",
        fingerprint=stage_fingerprint("held_out_reward"),
        tracked=tracking.run("held_out_reward", params, INPUTS),
    )


if __name__ == "__main__":
    main(held_out_reward)
