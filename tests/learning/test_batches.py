"""Padding, masks and the order of rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tasks.data.encoding.tokens import Encoded, EncodedPair
from tasks.learning.batches import (
    collate,
    collate_pairs,
    epoch_order,
    micro_batches,
    positions,
    steps_in,
    training_batches,
)

SHORT, LONG = Encoded([5], [6, 2]), Encoded([7, 8], [9, 4, 2])


def test_rows_are_padded_on_the_right():
    batch = collate([SHORT, LONG])
    assert batch.input_ids.tolist() == [[5, 6, 2, 0, 0], [7, 8, 9, 4, 2]]
    assert batch.attention_mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.completion_mask.tolist() == [[False, True, True, False, False], [False, False, True, True, True]]


def test_rows_are_packed_end_to_end_and_each_prompt_once():
    other = Encoded([5], [9, 9, 2])
    packing = collate([SHORT, LONG, other]).packing
    assert packing.input_ids.tolist() == [[5, 6, 2, 9, 9, 2, 7, 8, 9, 4, 2]]
    assert packing.position_ids.tolist() == [[0, 1, 2, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert packing.trees.bounds == [[0, 1, 3, 6], [6, 8, 11]]
    assert packing.places.tolist() == [[0, 1, 2, 0, 0], [6, 7, 8, 9, 10], [0, 3, 4, 5, 0]]


PROMPT, ANSWER = (st.lists(ids, min_size=1) for ids in (st.integers(0, 3), st.integers(4, 9)))


@given(st.lists(st.tuples(PROMPT, ANSWER), min_size=1))
def test_places_find_every_token_again(texts: list[tuple[list[int], list[int]]]):
    batch = collate([Encoded(*text) for text in texts])
    found = batch.packing.input_ids[0][batch.packing.places]
    assert found[batch.attention_mask].equal(batch.input_ids[batch.attention_mask])
    prompts = {tuple(prompt) for prompt, _ in texts}
    assert len(batch.packing.trees.bounds) == len(prompts)
    assert batch.packing.input_ids.numel() == sum(map(len, prompts)) + sum(len(answer) for _, answer in texts)


def test_some_rows_of_a_batch_are_a_batch():
    batch = collate([LONG, SHORT]).take([1])
    assert batch.input_ids.tolist() == [[5, 6, 2]]
    assert batch.packing.trees.bounds == [[0, 1, 3]]


def test_chosen_rows_lie_above_rejected_rows():
    batch = collate_pairs([EncodedPair(SHORT, LONG), EncodedPair(LONG, SHORT)])
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


def test_micro_batches_hold_items_of_similar_length_and_no_more_tokens_than_allowed():
    lengths = [9, 1, 5, 1, 7]
    # padded: 1 + 1 + 5 would be three of 5, which is 15; 5 + 7 two of 7
    assert list(micro_batches([0, 1, 2, 3, 4], lengths, 14)) == [[1, 3], [2, 4], [0]]
    # only the items of the step, and one that is too long by itself
    assert list(micro_batches([4, 0], lengths, 8)) == [[4], [0]]
    assert list(micro_batches([0, 1, 2, 3, 4], lengths, 45)) == [[1, 3, 2, 4, 0]]


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 200))
def test_micro_batches_hold_every_item_once_within_the_bound(lengths: list[int], tokens: int):
    groups = list(micro_batches(range(len(lengths)), lengths, tokens))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[index] for index in group) <= tokens
