"""What tensors hold at once, counted as they come and go."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tasks.learning.memory.live_bytes import LiveBytes


def test_what_is_freed_makes_room_and_views_take_none():
    known = torch.ones(1000)
    with LiveBytes([known]) as counter:
        first = known + 1  # 4000 bytes
        half = first[:500]
        del first  # held by its view
        second = half * 2  # 2000
        del half
        torch.zeros(100)  # 400, after the 4000 are gone
        second.sum()
    assert counter.peaks == [6000]


def test_tensors_without_data_count_as_real_ones_do():
    with FakeTensorMode():
        weight = torch.empty(256, 256)
    with LiveBytes([weight]) as counter:
        product = weight @ weight
        del product
        weight @ weight
    assert counter.peaks == [256 * 256 * 4]


def test_a_phase_begins_with_what_is_there():
    with LiveBytes([]) as counter:
        first = torch.ones(1000)
        counter.begin_phase()
        second = torch.ones(500)
        del first, second
        counter.begin_phase()
    assert counter.peaks == [4000, 6000, 0]
