"""The copies of reward functions that stages read: one folder for what is learned from, one for what is not.

So a change of a ground-truth reward trains nothing again, nor does one in a file that no reward is in.
"""

from pathlib import Path

from tasks.common.files import read_json
from tasks.rewards.functions import FunctionReward

FOLDER = Path("data/reward_functions")
TRAINING, GROUND_TRUTH, MODEL_USE = FOLDER / "training", FOLDER / "ground_truth", FOLDER / "reward_model.json"
LIST = "functions.json"  # in each folder: of each function its name in the file, what the user calls it, its options


def read_copies(folder: Path) -> list[FunctionReward]:
    """Load the functions whose copies lie in a folder, in the order of params.yaml.

    Raises:
        InputError: a file is missing or damaged, or a function cannot be loaded.
    """
    listed = read_json(folder / LIST).items()
    return [
        FunctionReward(name, folder / f"{name}.py", each["function"], each["source"], each["options"])
        for name, each in listed
    ]
