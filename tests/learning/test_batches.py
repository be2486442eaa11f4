"""Padding, masks and the order of rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.tokens import Encoded, EncodedPair
from tasks.learning.batches import (
    collate,
    collate_pairs,
    epoch_order,
    micro_batches,
    pair_batches,
    positions,
    row_batches,
    steps_in,
    training_batches,
)

SHORT, LONG = Encoded([5], [6, 2]), Encoded([7, 8], [9, 4, 2])


def test_rows_are_padded_on_the_right():
    batch = collate([SHORT, LONG], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 2, 0, 0], [7, 8, 9, 4, 2]]
    assert batch.attention_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.completion_mask.tolist() == [[False, True, True, False, False], [False, False, True, True, True]]


def test_masks_do_not_depend_on_the_padding_id():
    for mask, same in zip(collate([SHORT, LONG], 0)[1:], collate([SHORT, LONG], pad_id=2)[1:], strict=True):
        assert mask.equal(same)


def test_chosen_rows_lie_above_rejected_rows():
    batch = collate_pairs([EncodedPair(SHORT, LONG), EncodedPair(LONG, SHORT)], pad_id=0)
    assert batch.input_ids[:, 0].tolist() == [5, 7, 7, 5]


def test_positions_count_from_the_first_token_whichever_side_the_padding_is_on():
    mask = torch.tensor([[True, True, False], [False, True, True]])
    assert positions(mask).tolist() == [[0, 1, 1], [0, 0, 1]]


@given(st.integers(1, 200), st.integers(0, 5), st.integers(0, 2**31 - 1))
def test_an_epoch_meets_every_row_once_and_is_repeatable(count: int, epoch: int, seed: int):
    order = epoch_order(count, epoch, seed)
    assert sorted(order) == list(range(count))
    assert order == epoch_order(count, epoch, seed)


def test_epochs_and_seeds_differ():
    assert epoch_order(50, 0, 7) != epoch_order(50, 1, 7)
    assert epoch_order(50, 0, 7) != epoch_order(50, 0, 8)


def test_the_last_batch_of_an_epoch_is_smaller():
    batches = list(training_batches(5, batch_size=2, epochs=2, seed=7))
    assert [step for step, _ in batches] == [1, 2, 3, 4, 5, 6]
    assert [len(rows) for _, rows in batches] == [2, 2, 1, 2, 2, 1]
    assert sorted(row for _, rows in batches[:3] for row in rows) == [0, 1, 2, 3, 4]
    assert steps_in(5, 2, 2) == 6


@pytest.mark.parametrize("done", [0, 1, 3, 4, 6])
def test_training_goes_on_in_the_same_order(done: int):
    everything = list(training_batches(5, 2, 2, seed=7))
    assert list(training_batches(5, 2, 2, seed=7, done=done)) == everything[done:]


def test_micro_batches_hold_rows_of_similar_length():
    assert list(micro_batches([0, 1, 2, 3, 4], [9, 1, 5, 1, 7], 2)) == [[1, 3], [2, 4], [0]]
    # only the rows of the step
    assert list(micro_batches([4, 0], [9, 1, 5, 1, 7], 2)) == [[4, 0]]


def test_measuring_meets_every_row_once():
    device = torch.device("cpu")
    assert [len(batch.input_ids) for batch in row_batches([LONG, SHORT, LONG], 2, 0, device)] == [2, 1]
    pairs = [EncodedPair(SHORT, LONG)] * 3
    # four rows are two pairs; a micro-batch of one row still holds one pair
    assert [len(batch.input_ids) for batch in pair_batches(pairs, 4, 0, device)] == [4, 2]
    assert [len(batch.input_ids) for batch in pair_batches(pairs, 1, 0, device)] == [2, 2, 2]
