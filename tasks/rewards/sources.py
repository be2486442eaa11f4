"""The sources of reward functions: a user's files, and the verifiers that come with the project.

The stage reward_functions alone reads them; all others read its copies (tasks/rewards/copies.py).
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.common.files import hash_files, names_path_in, replacing, write_json
from tasks.rewards.copies import LIST, MODEL_USE
from tasks.rewards.functions import FunctionReward
from tasks.settings.params import NamedReward, Rewards
from tasks.settings.rewards import VERIFIERS

VERIFIERS_FOLDER = Path(__file__).parent / "verifiers"  # a file for each, with a function of its name


class Source(NamedTuple):
    """Where a function is defined."""

    file: Path
    function: str


def source_of(reward: NamedReward) -> Source:
    """Find the function of a reward that is no model."""
    if reward.source in VERIFIERS:
        return Source(VERIFIERS_FOLDER / f"{reward.source}.py", reward.source)
    file, _, function = reward.source.rpartition(":")
    return Source(Path(file), function)


def load_functions(rewards: Sequence[NamedReward]) -> list[FunctionReward]:
    """Load the functions among some rewards.

    Raises:
        InputError: one cannot be loaded.
    """
    functions = [reward for reward in rewards if not reward.is_model]
    return [FunctionReward(each.name, *source_of(each), each.source, each.options) for each in functions]


def check_verifiers(rewards: Rewards) -> None:
    """Check the options of the verifiers that come with the project, one by one and together, without any answer.

    Raises:
        InputError: one has an option that it does not take, or options that contradict each other.
    """
    used = [reward for reward in (*rewards.training, *rewards.ground_truth) if reward.source in VERIFIERS]
    for function in load_functions(used):
        function.check_options()


def write_copies(folder: Path, rewards: Sequence[NamedReward], data: Path | None = None) -> None:
    """Copy the files of the functions among some rewards into a folder, whole or not at all.

    Args:
        folder: of the copies.
        rewards: some.
        data: what functions may read. Its hash stands beside those whose options name it, or a path in it: what depends
            on the copies depends on it.

    Raises:
        InputError: a function reads data that are not there.
    """
    functions = [reward for reward in rewards if not reward.is_model]
    with replacing(folder) as draft:
        draft.mkdir()
        for each in functions:
            shutil.copyfile(source_of(each).file, draft / f"{each.name}.py")
        listed = {
            each.name: {"function": source_of(each).function, "source": each.source, "options": each.options}
            | ({"data": hash_files(data)} if data and names_path_in(each.options, data) else {})
            for each in functions
        }
        (draft / LIST).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def write_model_use(rewards: Rewards) -> None:
    """Write down whether a reward model is needed: a file of its own, so that a weight trains no reward model again."""
    write_json(MODEL_USE, {"reward_model": rewards.use_model})
