from pathlib import Path

import pytest
from safetensors.torch import load_file

from tasks.common.errors import InputError
from tasks.common.files import VALIDATED, read_json
from tasks.data.records import write_records
from tasks.held_out_reward import held_out_reward
from tasks.reward import reward
from tasks.settings.params import Params
from tests.conftest import MODEL_FILES, file_names, records_of

pytestmark = pytest.mark.usefixtures("workspace", "noted_run")


def test_it_learns_from_the_pairs_that_nothing_else_learns_from(params: Params):
    held_out_reward(params)
    metrics = read_json(Path("metrics/held_out_reward.json"))
    assert file_names("held_out_reward") == MODEL_FILES
    assert (metrics["pairs"], metrics["accuracy"]["pairs"]) == (4, 4)  # of the validation and the test split
    weights = load_file("models/held_out_reward/model.safetensors")
    others = [record for record in records_of(VALIDATED, "preferences") if record.split != "train"]
    write_records(VALIDATED, "preferences", others)
    held_out_reward(params)
    again = load_file("models/held_out_reward/model.safetensors")
    assert all(weights[name].equal(again[name]) for name in weights)


def test_it_has_another_seed_than_the_reward_model(params: Params):
    reward(params)
    held_out_reward(params)
    heads = [load_file(f"models/{stage}/model.safetensors")["score.weight"] for stage in ("reward", "held_out_reward")]
    assert (heads[0] - heads[1]).abs().mean() > 0.05  # the heads were drawn apart


def test_no_pair_in_the_validation_split_says_the_cure(params: Params):
    records = [record for record in records_of(VALIDATED, "preferences") if record.split != "validation"]
    write_records(VALIDATED, "preferences", records)
    with pytest.raises(InputError, match=r"preferences.jsonl has no row in the validation split: .*prepare.split"):
        held_out_reward(params)
