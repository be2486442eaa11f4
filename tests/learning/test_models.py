"""What is read off models of several families agrees with a naive computation, whatever lies in the padding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tasks.data.files import read_json
from tasks.data.tokens import Encoded
from tasks.errors import InputError
from tasks.learning.batches import Batch, collate
from tasks.learning.models import (
    completion_log_probs,
    completion_scores,
    completion_values,
    context_length,
    device_of,
    load_policy,
    load_reward,
    merged,
    new_reward_model,
    normalise_scores,
    reference,
    save_model,
    score_head,
    token_statistics,
    unwrapped,
    with_adapters,
)
from tasks.params import Lora, Params
from tests.conftest import MakeParams

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "gemma": GemmaConfig(**SHAPE),
    "gemma2": Gemma2Config(**SHAPE, sliding_window=8),  # caps its logits after the head
    "mistral": MistralConfig(**SHAPE, sliding_window=8),
    "gpt2": GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, bos_token_id=2, eos_token_id=2
    ),
}
READINGS: dict[str, Callable[[nn.Module, Batch], torch.Tensor]] = {
    "log_probs": completion_log_probs,
    "scores": completion_scores,
    "values": completion_values,
}
LORA = Lora(rank=4, alpha=8, targets="all-linear")
ROWS = [Encoded([5, 6, 7], [8, 9, 2]), Encoded([11], [12, 13, 14, 15, 16, 2]), Encoded([21, 22, 23, 24, 25], [2])]


@pytest.fixture(params=list(FAMILIES))
def config(request: pytest.FixtureRequest) -> PreTrainedConfig:
    torch.manual_seed(1)
    return FAMILIES[request.param]


def causal(config: PreTrainedConfig) -> Any:
    return AutoModelForCausalLM.from_config(config).eval()


def scoring(config: PreTrainedConfig) -> Any:
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config).eval()


def by_row(rows: list[Encoded], compute: Callable[[torch.Tensor, Encoded], list[float]], length: int) -> torch.Tensor:
    """One row at a time, without padding; then padded with zeros."""
    lines = [compute(torch.tensor([[*row.prompt, *row.completion]]), row) for row in rows]
    return torch.tensor([line + [0.0] * (length - len(line)) for line in lines])


def test_log_probs_agree_with_a_naive_computation(config: PreTrainedConfig):
    policy, batch = causal(config), collate(ROWS, pad_id=0)

    def naive(ids: torch.Tensor, row: Encoded) -> list[float]:
        log_probs = (policy(input_ids=ids).logits[0] / 0.7).log_softmax(-1)
        return [0.0] * len(row.prompt) + [
            log_probs[place - 1, ids[0, place]].item() for place in range(len(row.prompt), ids.shape[1])
        ]

    with torch.no_grad():
        found = completion_log_probs(policy, batch, temperature=0.7)
        statistics = token_statistics(policy, batch, temperature=0.7)
        torch.testing.assert_close(found, by_row(ROWS, naive, found.shape[1]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(statistics.log_probs, found, atol=1e-6, rtol=1e-6)


def test_scores_and_values_agree_with_a_naive_computation(config: PreTrainedConfig):
    model, batch = scoring(config), collate(ROWS, pad_id=0)

    def outputs(ids: torch.Tensor) -> Any:
        return score_head(model)(model.base_model(input_ids=ids).last_hidden_state)[0, :, 0]

    def naive(ids: torch.Tensor, row: Encoded) -> list[float]:
        values: list[float] = outputs(ids)[len(row.prompt) - 1 : -1].tolist()
        return [0.0] * len(row.prompt) + values

    with torch.no_grad():
        last = [outputs(torch.tensor([[*row.prompt, *row.completion]]))[-1].item() for row in ROWS]
        torch.testing.assert_close(completion_scores(model, batch), torch.tensor(last), atol=1e-5, rtol=1e-5)
        values = completion_values(model, batch)
        torch.testing.assert_close(values, by_row(ROWS, naive, values.shape[1]), atol=1e-5, rtol=1e-5)


def test_entropy_and_likeliest_by_enumeration():
    policy, batch = causal(FAMILIES["llama"]), collate(ROWS[:1], pad_id=0)
    found = token_statistics(policy, batch)
    distribution = policy(input_ids=batch.input_ids).logits[0, 2:5].softmax(-1)
    entropies = -(distribution * distribution.log()).sum(-1)
    torch.testing.assert_close(found.entropies[0, 3:], entropies, atol=1e-6, rtol=1e-6)
    assert found.are_likeliest[0, 3:].tolist() == (distribution.argmax(-1) == batch.input_ids[0, 3:]).tolist()
    assert not found.are_likeliest[0, :3].any()
    assert found.entropies[0, :3].tolist() == [0.0] * 3


def padded(batch: Batch, extra: int, filler: torch.Tensor) -> Batch:
    """The same rows with more columns on the right, and all padding filled with other ids."""
    ids = torch.nn.functional.pad(batch.input_ids, (0, extra))
    masks = [torch.nn.functional.pad(mask, (0, extra)) for mask in batch[1:]]
    return Batch(torch.where(masks[0], ids, filler), *masks)


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("read", list(READINGS))
def test_padding_changes_nothing_nor_any_gradient(config: PreTrainedConfig, read: str):
    model = causal(config) if read == "log_probs" else scoring(config)
    function = READINGS[read]
    batch = collate(ROWS, pad_id=0)
    plain = function(model, batch)
    plain_gradients = gradients(model, plain.square().sum())
    for filler in (2, torch.randint(0, 40, (3, batch.input_ids.shape[1] + 3))):  # 2: padding == end of sequence
        other = padded(batch, 3, torch.as_tensor(filler))
        found = function(model, other)
        part = found[:, : plain.shape[1]] if found.ndim == 2 else found
        torch.testing.assert_close(part, plain, atol=1e-5, rtol=1e-5)
        for name, gradient in gradients(model, found.square().sum()).items():
            torch.testing.assert_close(gradient, plain_gradients[name], atol=1e-4, rtol=1e-4, msg=name)


def test_padding_ids_do_not_move_one_bit():
    policy, batch = causal(FAMILIES["llama"]), collate(ROWS, pad_id=0)
    garbage = padded(batch, 0, torch.randint(0, 40, batch.input_ids.shape))
    assert completion_log_probs(policy, batch).equal(completion_log_probs(policy, garbage))


def test_left_padding_changes_nothing():
    policy, row = causal(FAMILIES["llama"]), collate(ROWS[:1], pad_id=0)
    left = Batch(*(torch.nn.functional.pad(part, (4, 0)) for part in row))
    torch.testing.assert_close(
        completion_log_probs(policy, left)[:, 4:], completion_log_probs(policy, row), atol=1e-5, rtol=1e-5
    )


def test_normalised_scores_are_shifted_then_scaled(tmp_path: Path):
    model, batch = scoring(FAMILIES["llama"]), collate(ROWS, pad_id=0)
    raw, raw_values = completion_scores(model, batch), completion_values(model, batch)
    normalise_scores(model, bias=0.5, gain=2.0)
    torch.testing.assert_close(completion_scores(model, batch), (raw + 0.5) * 2)
    expected = torch.where(batch.completion_mask, (raw_values + 0.5) * 2, 0.0)
    torch.testing.assert_close(completion_values(model, batch), expected)
    model.save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    assert (config["score_bias"], config["score_gain"]) == (0.5, 2.0)


def test_loading_gives_fp32_without_dropout(tiny_model: Path, params: Params):
    policy = load_policy(tiny_model, params, trainable=True)
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    assert not policy.training
    assert all(weight.requires_grad for weight in policy.parameters())
    assert not any(weight.requires_grad for weight in load_policy(tiny_model, params, trainable=False).parameters())


def test_a_new_head_has_variance_one_over_hidden_size_plus_one(
    tiny_model: Path, params: Params, make_params: MakeParams
):
    head = score_head(new_reward_model(tiny_model, params))
    assert isinstance(head, nn.Linear)
    assert head.bias is None
    assert head.weight.shape == (1, 32)
    generator = torch.Generator().manual_seed(params.seed)
    expected = torch.empty(1, 32).normal_(std=33**-0.5, generator=generator)
    assert head.weight.data.equal(expected)
    other = score_head(new_reward_model(tiny_model, make_params(seed=8)))
    assert isinstance(other, nn.Linear)
    assert not other.weight.equal(head.weight)


def test_saving_and_loading_give_the_same_weights(tiny_model: Path, params: Params, tmp_path: Path):
    tokenizer, batch = AutoTokenizer.from_pretrained(tiny_model), collate(ROWS, pad_id=0)
    model = new_reward_model(tiny_model, params)
    save_model(model, tokenizer, tmp_path / "out")
    again = load_reward(tmp_path / "out", params)
    assert completion_scores(again, batch).equal(completion_scores(model, batch))
    assert not any("tmp" in path.read_text() for path in (tmp_path / "out").glob("*.json"))  # no path of a machine


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_start_at_the_reference_and_are_merged_when_saved(family: str, tmp_path: Path, tiny_model: Path):
    torch.manual_seed(1)
    policy, batch = causal(FAMILIES[family]), collate(ROWS, pad_id=0)
    before = completion_log_probs(policy, batch).detach()
    adapted = with_adapters(policy, LORA)
    learning = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert learning
    assert all("lora_" in name for name in learning)
    assert completion_log_probs(adapted, batch).equal(before)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data += 0.1
    moved = completion_log_probs(adapted, batch).detach()
    assert not torch.allclose(moved, before, atol=1e-3)
    with reference(adapted) as model:
        assert completion_log_probs(model, batch).equal(before)
    save_model(adapted, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "out")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(completion_log_probs(whole, batch), moved, atol=1e-5, rtol=1e-5)
    assert not any("lora" in name for name in load_file(tmp_path / "out" / "model.safetensors"))


def test_the_head_learns_beside_adapters(tiny_model: Path, params: Params, tmp_path: Path):
    model = with_adapters(new_reward_model(tiny_model, params), LORA)
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert any("score" in name for name in learning)
    batch = collate(ROWS, pad_id=0)
    completion_scores(model, batch).sum().backward()
    score_head(model).get_parameter("modules_to_save.default.weight").data += 1.0
    scores = completion_scores(model, batch).detach()
    save_model(model, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "out")
    torch.testing.assert_close(completion_scores(load_reward(tmp_path / "out", params), batch), scores)


def test_rank_zero_changes_nothing(tiny_model: Path, params: Params):
    policy = load_policy(tiny_model, params, trainable=True)
    assert with_adapters(policy, params.lora) is policy
    assert merged(policy) is policy
    assert unwrapped(policy) is policy


def test_only_adapters_hold_their_own_reference(tiny_model: Path, params: Params):
    with pytest.raises(TypeError, match="adapters"), reference(load_policy(tiny_model, params, trainable=True)):
        pass


def test_adapter_targets_that_name_nothing(tiny_model: Path, params: Params):
    with pytest.raises(InputError, match=r"lora.targets \['nowhere'\] does not fit the model"):
        with_adapters(load_policy(tiny_model, params, trainable=True), Lora(rank=2, alpha=4, targets=["nowhere"]))


def test_context_length(config: PreTrainedConfig):
    assert context_length(causal(config)) == 64


def test_a_folder_without_model(tmp_path: Path, params: Params):
    with pytest.raises(InputError, match="holds no model that can be used here"):
        load_policy(tmp_path, params, trainable=False)


def test_a_family_without_scalar_head(tmp_path: Path, params: Params):
    from transformers import CohereConfig

    AutoModelForCausalLM.from_config(CohereConfig(**SHAPE)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"Cohere|cohere"):
        new_reward_model(tmp_path, params)


def test_a_head_of_another_name(tiny_model: Path, params: Params):
    policy = load_policy(tiny_model, params, trainable=False)
    with pytest.raises(InputError, match="models of type llama have no scalar head"):
        score_head(policy)


def test_cuda_asked_for_where_there_is_none(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"runtime\.device is cuda"):
        device_of(make_params(runtime={"device": "cuda"}))
    assert device_of(make_params(runtime={"device": "auto"})).type == "cpu"
