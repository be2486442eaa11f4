"""The outputs of models of several families agree with a naive computation, packed or padded."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tasks.data.encoding.tokens import Encoded
from tasks.learning.batches import Batch, collate
from tasks.learning.models import outputs
from tasks.learning.models.attention import PACKED
from tasks.learning.models.forward import is_packed, last_states, pack_if_exact, plain_head, predicting, unwrapped
from tasks.learning.models.loading import score_head
from tasks.learning.models.outputs import (
    at_temperature,
    completion_log_probs,
    completion_scores,
    completion_values,
    token_log_probs,
    token_outputs,
)
from tests.families import FAMILIES, ROWS, causal, scoring


def mean_scores(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Scores of a model whose head reads the mean over the answer."""
    unwrapped(model).config.score_pooling = "mean"
    return completion_scores(model, batch)


OUTPUTS: dict[str, Callable[[nn.Module, Batch], torch.Tensor]] = {
    "log_probs": completion_log_probs,
    "scores": completion_scores,
    "mean_scores": mean_scores,
    "values": completion_values,
}


@pytest.fixture(params=list(FAMILIES))
def config(request: pytest.FixtureRequest) -> PreTrainedConfig:
    return FAMILIES[request.param]


def read_as(packs: bool, model: Any) -> Any:
    """The model, reading packed rows where it can and is asked to."""
    if packs:
        pack_if_exact(model)
    return model


def by_row(rows: list[Encoded], compute: Callable[[torch.Tensor, Encoded], list[float]], length: int) -> torch.Tensor:
    """One row at a time, without padding; then padded with zeros."""
    lines = [compute(torch.tensor([[*row.prompt, *row.completion]]), row) for row in rows]
    return torch.tensor([line + [0.0] * (length - len(line)) for line in lines])


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_log_probs_agree_with_a_naive_computation(config: PreTrainedConfig, packs: bool):
    policy, batch = read_as(packs, causal(config)), collate(ROWS)

    def naive(ids: torch.Tensor, row: Encoded) -> list[float]:
        log_probs = (policy(input_ids=ids).logits[0] / 0.7).log_softmax(-1)
        return [0.0] * len(row.prompt) + [
            log_probs[place - 1, ids[0, place]].item() for place in range(len(row.prompt), ids.shape[1])
        ]

    with torch.no_grad():
        found = completion_log_probs(policy, batch, temperature=0.7)
        statistics = token_outputs(policy, batch, temperature=0.7)
        torch.testing.assert_close(found, by_row(ROWS, naive, found.shape[1]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(statistics.log_probs, found, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_that_is_written_out_is_that_of_a_log_softmax(temperature: float):
    generator = torch.Generator().manual_seed(0)
    logits = (10 * torch.randn(5, 11, generator=generator)).requires_grad_()
    tokens, weights = torch.tensor([0, 10, 3, 3, 7]), torch.randn(5, generator=generator)
    found = token_log_probs(at_temperature(logits, temperature), tokens)
    expected = (logits / temperature).log_softmax(dim=1)[range(5), tokens]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    [gradient], [wanted] = (torch.autograd.grad((weights * each).sum(), logits) for each in (found, expected))
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-6)
    precise = logits.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda each: token_log_probs(each, tokens), precise)


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_scores_and_values_agree_with_a_naive_computation(config: PreTrainedConfig, packs: bool):
    model, batch = read_as(packs, scoring(config)), collate(ROWS)

    def outputs(ids: torch.Tensor) -> Any:
        return score_head(model)(model.base_model(input_ids=ids).last_hidden_state)[0, :, 0]

    def naive(ids: torch.Tensor, row: Encoded) -> list[float]:
        values: list[float] = outputs(ids)[len(row.prompt) - 1 : -1].tolist()
        return [0.0] * len(row.prompt) + values

    with torch.no_grad():
        last = [outputs(torch.tensor([[*row.prompt, *row.completion]]))[-1].item() for row in ROWS]
        torch.testing.assert_close(completion_scores(model, batch), torch.tensor(last), atol=1e-5, rtol=1e-5)
        states = [outputs(torch.tensor([[*row.prompt, *row.completion]]))[len(row.prompt) :] for row in ROWS]
        means = torch.stack([each.mean() for each in states])
        torch.testing.assert_close(mean_scores(model, batch), means, atol=1e-5, rtol=1e-5)
        values = completion_values(model, batch)
        torch.testing.assert_close(values, by_row(ROWS, naive, values.shape[1]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("read", ["scores", "mean_scores"])
def test_the_rows_beside_it_do_not_change_a_score(config: PreTrainedConfig, read: str):
    model = read_as(True, scoring(config))
    of_all = OUTPUTS[read](model, collate(ROWS))
    split = torch.cat([OUTPUTS[read](model, collate(part)) for part in (ROWS[:1], ROWS[1:3], ROWS[3:])])
    torch.testing.assert_close(of_all, split, atol=1e-5, rtol=1e-5)


def test_entropy_and_likeliest_by_enumeration():
    policy, batch = read_as(True, causal(FAMILIES["llama"])), collate(ROWS[:1])
    found = token_outputs(policy, batch)
    distribution = policy(input_ids=batch.input_ids).logits[0, 2:5].softmax(-1)
    entropies = -(distribution * distribution.log()).sum(-1)
    torch.testing.assert_close(found.entropies[0, 3:], entropies, atol=1e-6, rtol=1e-6)
    assert found.are_likeliest[0, 3:].tolist() == (distribution.argmax(-1) == batch.input_ids[0, 3:]).tolist()
    assert not found.are_likeliest[0, :3].any()
    assert found.entropies[0, :3].tolist() == [0.0] * 3


def padded(batch: Batch, extra: int, filler: torch.Tensor) -> Batch:
    """The same rows with more columns on the right, and all padding filled with other ids."""
    ids = torch.nn.functional.pad(batch.input_ids, (0, extra))
    attention_mask, completion_mask = (torch.nn.functional.pad(mask, (0, extra)) for mask in batch[1:3])
    ids = torch.where(attention_mask, ids, filler)
    return batch._replace(input_ids=ids, attention_mask=attention_mask, completion_mask=completion_mask)


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("read", list(OUTPUTS))
def test_padding_changes_nothing_nor_any_gradient(config: PreTrainedConfig, read: str):
    model = causal(config) if read == "log_probs" else scoring(config)
    function = OUTPUTS[read]
    batch = collate(ROWS)
    plain = function(model, batch)
    plain_gradients = gradients(model, plain.square().sum())
    for filler in (2, torch.randint(0, 40, (len(ROWS), batch.input_ids.shape[1] + 3))):  # 2: padding == end of sequence
        other = padded(batch, 3, torch.as_tensor(filler))
        found = function(model, other)
        part = found[:, : plain.shape[1]] if found.ndim == 2 else found
        torch.testing.assert_close(part, plain, atol=1e-5, rtol=1e-5)
        for name, gradient in gradients(model, found.square().sum()).items():
            torch.testing.assert_close(gradient, plain_gradients[name], atol=1e-4, rtol=1e-4, msg=name)


def test_padding_ids_do_not_move_one_bit():
    policy, batch = causal(FAMILIES["llama"]), collate(ROWS)
    garbage = padded(batch, 0, torch.randint(0, 40, batch.input_ids.shape))
    assert completion_log_probs(policy, batch).equal(completion_log_probs(policy, garbage))


def test_left_padding_changes_nothing():
    policy, row = causal(FAMILIES["llama"]), collate(ROWS[:1])
    ids, attention_mask, completion_mask = (torch.nn.functional.pad(part, (4, 0)) for part in row[:3])
    left = row._replace(input_ids=ids, attention_mask=attention_mask, completion_mask=completion_mask)
    torch.testing.assert_close(
        completion_log_probs(policy, left)[:, 4:], completion_log_probs(policy, row), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("at_once", [2**26, 3 * 40], ids=["whole", "in chunks"])
@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_states_at_hand_change_nothing_nor_any_gradient(
    config: PreTrainedConfig, packs: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
):
    policy, batch, passes = read_as(packs, causal(config)), collate(ROWS), []
    expected, statistics = completion_log_probs(policy, batch, 0.7), token_outputs(policy, batch, 0.7)
    expected_gradients = gradients(policy, expected.square().sum())
    monkeypatch.setattr(outputs, "LARGEST_LOGITS", at_once)
    states = last_states(policy, batch, predicting(batch))
    is_plain = plain_head(policy) is not None
    policy.base_model.register_forward_hook(lambda *_: passes.append(1))
    found, again = completion_log_probs(policy, batch, 0.7, states), token_outputs(policy, batch, 0.7, states)
    assert len(passes) == (0 if is_plain else 2)  # where the head is not all there is, they cannot save the pass
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    for one, other in zip(again, statistics, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    for name, gradient in gradients(policy, found.square().sum()).items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-4, rtol=1e-5, msg=name)


# --- Logits in chunks


@pytest.mark.parametrize("packs", [False, True], ids=["padded", "packed"])
def test_chunks_of_logits_change_nothing_nor_any_gradient(
    config: PreTrainedConfig, packs: bool, monkeypatch: pytest.MonkeyPatch
):
    policy, batch = read_as(packs, causal(config)), collate(ROWS)
    whole, statistics = completion_log_probs(policy, batch, 0.7), token_outputs(policy, batch, 0.7)
    expected = gradients(policy, whole.square().sum())
    monkeypatch.setattr(outputs, "LARGEST_LOGITS", 3 * 40)  # three of the 19 tokens at once
    chunked, again = completion_log_probs(policy, batch, 0.7), token_outputs(policy, batch, 0.7)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=1e-6)
    for one, other in zip(again, statistics, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    for name, gradient in gradients(policy, chunked.square().sum()).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-5, msg=name)


def test_chunks_never_hold_more_logits_than_allowed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outputs, "LARGEST_LOGITS", 3 * 40)
    policy, sizes = read_as(True, causal(FAMILIES["llama"])), []
    policy.lm_head.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.numel()))
    completion_log_probs(policy, collate(ROWS)).sum().backward()
    assert max(sizes[2:]) == 3 * 40  # the first two try the head out
    assert len(sizes) == 2 + 7 + 7  # 19 tokens by threes, forward and backward


def test_a_head_that_is_not_all_there_is_does_not_pass_for_it():
    config = deepcopy(FAMILIES["gemma2"])
    config.final_logit_softcapping = 2.0
    assert plain_head(causal(config)) is None
    assert plain_head(causal(FAMILIES["llama"])) is not None


# --- Packed rows

CANNOT_BE_PACKED = {"gemma2": "attention with softcap"}


def test_families_read_packed_rows_or_say_why_not(config: PreTrainedConfig, caplog: pytest.LogCaptureFixture):
    model = read_as(True, causal(config))
    assert is_packed(model) == (config.model_type not in CANNOT_BE_PACKED)
    message = "gemma2: rows are padded, not packed, which is slower (attention with softcap)"
    assert caplog.messages == ([] if is_packed(model) else [message])


@pytest.mark.parametrize("read", list(OUTPUTS))
def test_packing_changes_nothing_nor_any_gradient(config: PreTrainedConfig, read: str):
    model = causal(config) if read == "log_probs" else scoring(config)
    function, batch = OUTPUTS[read], collate(ROWS)
    padded = function(model, batch)
    expected = gradients(model, padded.square().sum())
    packed = function(read_as(True, model), batch)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients(model, packed.square().sum()).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4, msg=name)


def test_the_rows_a_row_is_packed_with_do_not_change_it():
    policy = read_as(True, causal(FAMILIES["llama"]))
    of_all = completion_log_probs(policy, collate(ROWS))
    for row, found in zip(ROWS, of_all, strict=True):
        alone = completion_log_probs(policy, collate([row]))[0]
        torch.testing.assert_close(found[: row.length], alone, atol=1e-6, rtol=1e-6)


def test_a_shared_prompt_is_computed_once():
    seen: list[int] = []
    policy = read_as(True, causal(FAMILIES["llama"]))
    policy.base_model.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0].shape[1]))
    completion_log_probs(policy, collate([ROWS[0], ROWS[3], ROWS[1]]))
    assert seen == [3 + 3 + 9 + 1 + 6]


def test_packed_rows_need_no_attention_mask_of_their_size():
    # transformers would make one of (T, T) if it were given none
    policy, masks = read_as(True, causal(FAMILIES["llama"])), []

    def note(_module: nn.Module, _inputs: object, keywords: dict[str, Any]) -> None:
        masks.append(keywords["attention_mask"].numel())

    policy.model.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    completion_log_probs(policy, collate(ROWS))
    assert masks == [1]


def test_a_family_that_leaks_between_packed_rows_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def leaking(module: Any, query: Any, key: Any, value: Any, _mask: Any, **others: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, None, **others)

    monkeypatch.setitem(AttentionInterface._global_mapping, PACKED, leaking)
    policy = read_as(True, causal(FAMILIES["llama"]))
    assert not is_packed(policy)
    assert "rows are padded, not packed, which is slower (hidden states would differ by" in caplog.text


def test_a_family_that_attends_in_chunks_is_not_packed(caplog: pytest.LogCaptureFixture):
    policy = causal(FAMILIES["llama"])
    policy.config.attention_chunk_size = 8192
    assert not is_packed(read_as(True, policy))
    assert "attention in chunks" in caplog.text
