"""The copies of reward functions that stages read: one folder for what is learned from, one for what is not.

So a change of a ground-truth reward trains nothing again, nor does one in a file that no reward is in.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tasks.common.files import read_json, replacing, write_json
from tasks.rewards.functions import FunctionReward
from tasks.settings.params import NamedReward, Rewards

FOLDER = Path("data/reward_functions")
TRAINING, GROUND_TRUTH, MODEL_USE = FOLDER / "training", FOLDER / "ground_truth", FOLDER / "reward_model.json"
LIST = "functions.json"  # in each folder: of each function its name in the file, and what the user calls it


def load_functions(rewards: Sequence[NamedReward]) -> list[FunctionReward]:
    """Load the functions among some rewards from the user's files.

    Raises:
        InputError: one cannot be loaded.
    """
    return [
        FunctionReward(each.name, Path(each.file), each.function, each.source) for each in rewards if not each.is_model
    ]


def write_copies(folder: Path, rewards: Sequence[NamedReward]) -> None:
    """Copy the files of the functions among some rewards into a folder, whole or not at all."""
    functions = [reward for reward in rewards if not reward.is_model]
    with replacing(folder) as draft:
        draft.mkdir()
        for each in functions:
            shutil.copyfile(each.file, draft / f"{each.name}.py")
        listed = {each.name: {"function": each.function, "source": each.source} for each in functions}
        (draft / LIST).write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def read_copies(folder: Path) -> list[FunctionReward]:
    """Load the functions whose copies lie in a folder, in the order of params.yaml.

    Raises:
        InputError: a file is missing or damaged, or a function cannot be loaded.
    """
    listed = read_json(folder / LIST).items()
    return [FunctionReward(name, folder / f"{name}.py", each["function"], each["source"]) for name, each in listed]


def write_model_use(rewards: Rewards) -> None:
    """Write down whether a reward model is needed: a file of its own, so that a weight trains no reward model again."""
    write_json(MODEL_USE, {"reward_model": rewards.use_model})
