"""Rows to measure a model on: each once, whichever process has it."""

import pytest
import torch

from tasks.data.encoding.tokens import Encoded, EncodedPair
from tasks.learning.held_out import HeldOut, pair_batches, row_batches

SHORT, LONG = Encoded([4, 5], [6]), Encoded([7], [8, 9, 10, 11])
DEVICE = torch.device("cpu")


def sizes(held_out: HeldOut) -> list[int]:
    return [len(batch.input_ids) for batch in held_out.batches]


def test_measuring_meets_every_row_once():
    assert sizes(row_batches([LONG, SHORT, LONG], 10, DEVICE)) == [2, 1]
    pairs = [EncodedPair(SHORT, LONG)] * 3
    # a pair counts as two rows of five tokens, and is never cut
    assert sizes(pair_batches(pairs, 20, DEVICE)) == [4, 2]
    assert sizes(pair_batches(pairs, 1, DEVICE)) == [2, 2, 2]


@pytest.mark.parametrize(("is_sharded", "idle"), [("false", 0), ("true", 1)])
def test_processes_share_rows_and_keep_step_where_weights_are_sharded(
    is_sharded: str, idle: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", is_sharded)
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        found.append(row_batches([LONG, SHORT, LONG], 1, DEVICE).groups)
    assert sorted(place for groups in found for group in groups if group.weight for place in group.items) == [0, 1, 2]
    assert [sum(group.weight == 0 for group in groups) for groups in found] == [0, idle]
