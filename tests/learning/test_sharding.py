"""Where the parts of a sharded model lie, and where it computes."""

import ast

import torch

from tasks.learning.models.forward import compute_device, set_compute_device
from tests.conftest import ROOT
from tests.tiny import tiny_policy

MODELS = {"model", "policy", "critic", "reward_model", "body", "inner", "base_model", "unwrapped", "get_base_model"}


def model_devices(code: str) -> list[int]:
    """Lines that ask a model for the device of its weights."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and node.attr == "device":
            owner = node.value.func if isinstance(node.value, ast.Call) else node.value
            name = getattr(owner, "id", getattr(owner, "attr", ""))
            if name in MODELS:
                found.append(node.lineno)
    return found


def test_a_model_computes_where_its_weights_lie_or_on_a_given_device():
    policy, other = tiny_policy(), tiny_policy()
    set_compute_device(policy, torch.device("meta"))
    assert (compute_device(policy).type, compute_device(other).type) == ("meta", "cpu")


def test_no_module_places_a_batch_where_the_weights_lie():
    assert model_devices("a = unwrapped(policy).device\nb = models.policy.device\nc = batch.device") == [1, 2]
    files = [*(ROOT / "tasks").glob("*.py"), *(ROOT / "tasks" / "learning").rglob("*.py")]
    found = [
        f"{file.relative_to(ROOT)}:{line}" for file in files for line in model_devices(file.read_text(encoding="utf-8"))
    ]
    assert [each.partition(":")[0] for each in found] == ["tasks/learning/models/forward.py"]  # compute_device itself
