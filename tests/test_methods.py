"""The table of methods: a person who adds a row learns what else a method needs."""

from typing import get_args

import pytest

from tasks.methods import METHODS, MethodName, stages_behind
from tasks.settings.params import Methods
from tests.conftest import ROOT


def test_every_method_has_a_name_a_row_and_settings() -> None:
    assert set(METHODS) == set(get_args(MethodName)) == set(Methods.model_fields)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_stage_and_a_room(name: str) -> None:
    assert (ROOT / f"tasks/{name}.py").is_file()
    assert (ROOT / f"tasks/learning/{name}").is_dir()


def test_what_a_policy_follows_from() -> None:
    assert stages_behind("dpo") == ("sft", "dpo")
    assert stages_behind("ppo") == ("sft", "reward", "ppo")
    assert METHODS["dpo"].made_from == "the SFT model"
    assert METHODS["ppo"].made_from == "the SFT model and the reward model"
