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
    assert counter.peak == 6000


def test_tensors_without_data_count_as_real_ones_do():
    with FakeTensorMode():
        weight = torch.empty(256, 256)
    with LiveBytes([weight]) as counter:
        product = weight @ weight
        del product
        weight @ weight
    assert counter.peak == 256 * 256 * 4


def test_gradients_divide_a_backward_pass():
    first, second = torch.nn.Parameter(torch.ones(1000)), torch.nn.Parameter(torch.ones(1000))
    with LiveBytes([first, second]) as counter:
        counter.watch_gradients([first, second])
        states = first * 2
        loss = (states * second).sum()
        del states
        loss.backward()
    before, after = counter.halves
    assert after >= 8000  # both gradients
    assert counter.peak == max(before, after)
