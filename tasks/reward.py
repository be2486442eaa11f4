"""Reads data/validate and models/sft, writes models/reward, metrics/reward.json and curves/reward.csv.

The reward model: the SFT model with a scalar head, trained so that chosen answers score higher than rejected ones. PPO
learns from its scores.
"""

from tasks.learning.reward_model.training import INPUTS, leave_untrained, train_reward_model
from tasks.registry.dvc_outputs.stages import stage_fingerprint
from tasks.registry.mlflow_runs import tracking
from tasks.settings.params import Params
from tasks.stage import main


def reward(params: Params) -> None:
    """Train the reward model on the preference pairs and put its scores on a standard scale.

    Where PPO learns from functions only, nothing is trained.

    Raises:
        InputError: a split is empty, a row does not fit the model, or training no longer gives numbers.
    """
    if not params.rewards.use_model:
        leave_untrained("reward", tracking.run("reward", params, INPUTS))
        return
    train_reward_model(
        "reward",
        params,
        params.reward,
        learned_from="train",
        watched="validation",
        stopped_by="validation",
        fingerprint=stage_fingerprint("reward"),
        tracked=tracking.run("reward", params, INPUTS),
    )


if __name__ == "__main__":
    main(reward)
