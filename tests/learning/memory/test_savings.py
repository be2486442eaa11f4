"""The least change that fits, found by arithmetic."""

import pytest

from tasks.learning.memory.savings import Plan, least_change
from tasks.learning.memory.stages import Sharing
from tasks.settings.params import parse_params
from tests.learning.memory.shapes import settings


def test_the_cheapest_change_that_suffices_is_named():
    plan = Plan(settings(), Sharing(), on_gpu=True)
    found = least_change(plan, lambda each: each.params.runtime.precision == "bf16")
    assert found is not None
    assert found.changes == ("runtime.precision=bf16",)
    both = least_change(plan, lambda each: bool(each.params.lora.rank and each.params.runtime.gradient_checkpointing))
    assert both is not None
    assert set(both.changes) == {"runtime.gradient_checkpointing=true", "lora.rank=16"}
    assert both.params.lora.rank == 16


def test_nothing_is_proposed_where_all_changes_do_not_suffice():
    assert least_change(Plan(settings(), Sharing(), on_gpu=True), lambda _: False) is None


def test_several_devices_share_the_weights_and_one_may_offload_them():
    found = least_change(Plan(settings(), Sharing(8), on_gpu=True), lambda each: each.sharing.is_sharded)
    assert found is not None
    assert found.sharing == Sharing(8, is_sharded=True)
    [change] = found.changes
    assert "infra/accelerate/fsdp.yaml --num_processes 8 -m" in change
    alone = least_change(Plan(settings(), Sharing(), on_gpu=True), lambda each: each.sharing.offloads)
    assert alone is not None
    assert "fsdp_offload.yaml --num_processes 1" in alone.changes[0]


@pytest.mark.parametrize("wanted", ["lora.quantize", "runtime.optimiser", "ppo.critic"])
def test_what_is_proposed_is_accepted_by_the_settings(wanted: str):
    section, key = wanted.split(".")
    before = getattr(getattr(settings(), section), key)
    found = least_change(
        Plan(settings(), Sharing(2), on_gpu=True), lambda each: getattr(getattr(each.params, section), key) != before
    )
    assert found is not None
    assert parse_params(found.params.model_dump(by_alias=True, mode="json")) == found.params
