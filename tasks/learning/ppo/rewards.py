"""The rewards of an iteration: what functions give its responses, and the sum that PPO learns from."""

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.lazy import LazySequence
from tasks.common.lines import Lines
from tasks.data.reasoning import answer_text, references_without_reasoning
from tasks.data.records import Prompt, Split
from tasks.learning import processes
from tasks.learning.ppo.advantages import standardised_in_groups
from tasks.learning.sampling.sampler import Response
from tasks.rewards.answered import Reward, answered
from tasks.settings.base import Reasoning
from tasks.settings.params import TrainingReward

OF_A_REWARD = "reward/"


def prompts_on_disk(file: Path, split: Split) -> LazySequence[Prompt]:
    """Give the prompts of a split in their order, each read when it is asked for: 16 bytes a row are held.

    Raises:
        InputError: the file is missing or damaged.
    """
    rows = Lines(file)
    numbers = array("q", (number for number, row in enumerate(rows) if row["split"] == split))
    return LazySequence(len(numbers), lambda place: Prompt(**rows[numbers[place]]))


def function_scores(
    functions: Sequence[Reward],
    prompts: Sequence[Prompt],
    asked: Sequence[int],
    responses: Sequence[Response],
    tokenizer: PreTrainedTokenizerBase,
    *,
    reasoning: Reasoning | None,
) -> dict[str, Tensor]:
    """Have functions score B responses; of several processes each scores a share.

    Args:
        functions: which may be none.
        prompts: of which some were asked.
        asked: the place among them of each response's prompt.
        responses: to be scored.
        tokenizer: that turns their tokens into text.
        reasoning: the marks of what functions are not given; None: they are given all.

    Returns:
        Scores (B,) by the function's name.

    Raises:
        InputError: a function fails.
    """
    if not functions:
        return {}
    device = responses[0].log_probs.device
    share = list(range(processes.rank(), len(responses), processes.world_size()))
    rows = [responses[place].row for place in share]
    given = answered(
        [references_without_reasoning(prompts[asked[place]], reasoning) for place in share],
        [answer_text(tokenizer, row, reasoning) for row in rows],
        [row.completion for row in rows],
    )
    scores = {}
    for function in functions:
        found = torch.zeros(len(responses), device=device)
        found[share] = torch.tensor(function(given), device=device)
        processes.all_reduce(found)
        scores[function.name] = found
    return scores


def by_reward(
    rewards: Sequence[TrainingReward], of_model: Tensor, of_functions: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Give the scores (B,) of every reward by its name, in the order of params.yaml."""
    return {reward.name: of_model if reward.is_model else of_functions[reward.name] for reward in rewards}


def weighted_sum(rewards: Sequence[TrainingReward], scores: Mapping[str, Tensor]) -> Tensor:
    """Sum up the scores (B,) of all rewards, each times its weight."""
    first, *others = (reward.weight * scores[reward.name] for reward in rewards)
    return sum(others, start=first)


def normalised_sum(rewards: Sequence[TrainingReward], scores: Mapping[str, Tensor], responses: int) -> Tensor:
    """Normalise each reward in its prompt's group, sum them up by weight, and whiten: GDPO (arXiv 2601.05242).

    A reward of large numbers does not drown the others, and answers that differ in one reward only are distinguished.

    Args:
        rewards: with their weights.
        scores: (B,) by the reward's name; those to one prompt are neighbours.
        responses: to each prompt, at least 2.

    Returns:
        (B,), of mean 0 and sample deviation 1; 0 if all are alike.
    """
    total = weighted_sum(rewards, {name: standardised_in_groups(of_one, responses) for name, of_one in scores.items()})
    # 1e-4 as in the groups: it is small beside a deviation of about 1.
    return (total - total.mean()) / (total.std() + 1e-4)


def curve_name(reward: str) -> str:
    """Name a reward's column of the curve, and its metric in MLflow."""
    return OF_A_REWARD + reward


def is_of_a_reward(column: str) -> bool:
    """Whether a column of the curve is that of a single reward."""
    return column.startswith(OF_A_REWARD)
