"""Reads data/validate and models/sft, writes models/judge, metrics/judge.json and curves/judge.csv.

The held-out judge: another reward model, from another seed and from the pairs of the validation split, which neither
the reward model nor DPO learns from. What pleases the reward model and not the judge is a weakness that was found, not
a better answer (Gao et al. 2023, "Scaling laws for reward model overoptimization").
"""

from tasks.learning.learner import seed_for
from tasks.learning.scoring import INPUTS, fit_reward_model
from tasks.params import Params
from tasks.registry import tracking
from tasks.registry.stages import stage_origin
from tasks.stage import main


def judge(params: Params) -> None:
    """Train the judge and put its scores on a standard scale.

    Raises:
        InputError: a split is empty, a row does not fit the model, or training no longer gives numbers.
    """
    other = params.model_copy(update={"seed": seed_for(params.seed, "judge", 0) % 2**31})
    fit_reward_model(
        "judge",
        other,
        params.judge,
        learned_from="validation",
        watched="test",
        origin=stage_origin("judge"),
        tracked=tracking.run("judge", params, INPUTS),
    )


if __name__ == "__main__":
    main(judge)
