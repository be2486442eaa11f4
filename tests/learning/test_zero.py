"""How a whole tensor is cut for DeepSpeed; what DeepSpeed makes of it is in test_ranks.py."""

from typing import Any

import pytest
import torch
from torch import nn

from tasks.learning import ranks
from tasks.learning.sharding import cut_like, is_cut


def test_each_process_gets_a_stretch_and_the_last_one_is_padded(monkeypatch: pytest.MonkeyPatch):
    weight: Any = nn.Parameter(torch.empty(0))
    weight.ds_tensor = torch.empty(3)  # of 5 numbers, half of 6
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "")
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    shards = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        shards.append(cut_like(values, weight).tolist())
    assert shards == [[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]]


def test_only_weights_that_deepspeed_has_cut_are_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_CONFIG_DS_FIELDS", "")
    weight = nn.Parameter(torch.ones(3))
    assert ranks.are_sharding() and not is_cut(weight)
    assert cut_like(torch.zeros(3), weight).tolist() == [0.0, 0.0, 0.0]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not ranks.are_sharding()
