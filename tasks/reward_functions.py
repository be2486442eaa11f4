"""Reads the reward functions that params.yaml names and data/validate, writes copies into data/reward_functions.

A function that cannot be loaded, or fails on reference answers of held-out prompts, stops the pipeline here, before
anything is trained.
"""

from pathlib import Path

from tasks.common.files import VALIDATED
from tasks.data.reasoning import references_without_reasoning
from tasks.data.records import read_prompts
from tasks.rewards.answered import Answered, answered
from tasks.rewards.copies import GROUND_TRUTH, TRAINING
from tasks.rewards.functions import FunctionReward
from tasks.rewards.sources import check_verifiers, load_functions, write_copies, write_model_use
from tasks.settings.params import Params
from tasks.stage import main

SAMPLE = 64  # prompts


def reward_functions(params: Params) -> None:
    """Check the functions among the rewards, and copy their files.

    Raises:
        InputError: a function cannot be loaded, or fails on an answer.
    """
    rewards, held_out = params.rewards, held_out_answers(params)
    check_verifiers(rewards)
    for function in load_functions([*rewards.training, *rewards.ground_truth]):
        try_out(function, held_out)
    write_copies(TRAINING, rewards.training, Path(rewards.data))
    write_copies(GROUND_TRUTH, rewards.ground_truth, Path(rewards.data))
    write_model_use(rewards)


def held_out_answers(params: Params) -> Answered:
    """Give answers to some validation prompts: the first reference, where there is one, and no text."""
    prompts = sorted(read_prompts(VALIDATED, "validation"), key=lambda prompt: prompt.id)[:SAMPLE]
    prompts = [references_without_reasoning(prompt, params.base.reasoning) for prompt in prompts]
    pairs = [(prompt, text) for prompt in prompts for text in (*prompt.references[:1], "")]
    return answered([prompt for prompt, _ in pairs], [text for _, text in pairs], [[] for _ in pairs])


def try_out(function: FunctionReward, held_out: Answered) -> None:
    """Have a function score answers; one that asks for tokens is left out, for these answers have none.

    Raises:
        InputError: it fails.
    """
    if "answer_ids" not in function.arguments:
        function(held_out)


if __name__ == "__main__":
    main(reward_functions)
