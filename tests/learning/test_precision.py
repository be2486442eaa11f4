"""bf16: what lies in it changes no bit of what autocast computes, and takes half the memory."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.common.files import MODELS
from tasks.data.base_model.mismatches import load_with_mismatches
from tasks.data.encoding.tokens import Encoded, load_tokenizer
from tasks.learning.batches import collate
from tasks.learning.models import loading
from tasks.learning.models.forward import pack_if_exact, set_compute_dtype, unwrapped
from tasks.learning.models.loading import (
    load_policy,
    load_reward,
    new_reward_model,
    reference,
    score_head,
    with_adapters,
)
from tasks.learning.models.outputs import completion_log_probs, completion_scores
from tasks.learning.models.precision import exactly, linear_layers, round_frozen, untied_layers
from tasks.learning.models.saving import save_model
from tasks.learning.sampling.copies import sampling_copy
from tasks.learning.sampling.engines import engine_of
from tasks.learning.sampling.kv_cache import RaggedCache
from tasks.learning.serving.live_batch import live_batch
from tests.families import FAMILIES, causal

BF16 = torch.bfloat16
ROWS = [Encoded([4, 5, 6], [7, 8, 9, 1]), Encoded([9, 3], [5, 6, 1])]
BATCH = collate(ROWS)


@pytest.fixture
def params(workspace, make_params):
    return make_params(runtime={"precision": "bf16"})


@pytest.fixture
def adapted(make_params, params):
    params = make_params(runtime={"precision": "bf16"}, lora={"rank": 2})
    model = with_adapters(load_policy(MODELS / "sft", params, trainable=True), params.lora)
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


def answered(engine, model, prompts, params):
    return engine_of(engine, params.runtime)(
        model,
        load_tokenizer(MODELS / "sft"),
        prompts,
        max_new_tokens=6,
        temperature=1.0,
        seed=2,
        max_concurrent_sequences=2,
    )


@torch.no_grad()
def test_a_frozen_model_gives_the_bits_of_autocast(params):
    frozen = load_policy(MODELS / "sft", params, trainable=False)
    trained = load_policy(MODELS / "sft", params, trainable=True)
    expected = completion_log_probs(trained, BATCH)
    assert torch.equal(completion_log_probs(frozen, BATCH), expected)
    set_compute_dtype(trained, torch.float32)
    in_fp32 = completion_log_probs(trained, BATCH)
    assert not torch.equal(expected, in_fp32)
    assert torch.allclose(expected, in_fp32, atol=0.05)


def test_only_frozen_linear_layers_are_rounded(params):
    frozen = load_policy(MODELS / "sft", params, trainable=False)
    embeddings = frozen.get_input_embeddings().weight
    rounded = {id(layer.weight) for layer in linear_layers(frozen)} - {id(embeddings)}
    assert rounded
    for weight in frozen.parameters():
        assert weight.dtype == (BF16 if id(weight) in rounded else torch.float32)
    trained = load_policy(MODELS / "sft", params, trainable=True)
    assert {weight.dtype for weight in trained.parameters()} == {torch.float32}


@torch.no_grad()
def test_a_reward_model_gives_the_bits_of_autocast(params):
    save_model(new_reward_model(MODELS / "sft", params), load_tokenizer(MODELS / "sft"), MODELS / "reward")
    trained, frozen = (load_reward(MODELS / "reward", params, trainable=each) for each in (True, False))
    assert score_head(frozen).weight.dtype == torch.float32
    assert BF16 in {weight.dtype for weight in frozen.parameters()}
    assert torch.equal(completion_scores(frozen, BATCH), completion_scores(trained, BATCH))


@torch.no_grad()
def test_the_base_of_adapters_is_rounded_and_they_are_not(adapted, params):
    weights = dict(adapted.named_parameters())
    assert {weight.dtype for name, weight in weights.items() if "lora" in name} == {torch.float32}
    assert BF16 in {weight.dtype for name, weight in weights.items() if "lora" not in name}
    with reference(adapted) as base:
        without = completion_log_probs(base, BATCH)
    assert torch.equal(without, completion_log_probs(load_policy(MODELS / "sft", params, trainable=False), BATCH))
    assert not torch.equal(without, completion_log_probs(adapted, BATCH))


@torch.no_grad()
def test_the_sampling_copy_has_the_adapters_in_its_weights(adapted):
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    copied = sampling_copy(adapted)
    assert not any("lora" in name for name, _ in copied.named_parameters())
    layer: Any = unwrapped(adapted).get_submodule("model.layers.0.mlp.up_proj")
    delta = layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight)
    expected = (layer.base_layer.weight.float() + delta).to(BF16)
    assert torch.equal(copied.get_parameter("model.layers.0.mlp.up_proj.weight"), expected)
    assert torch.allclose(completion_log_probs(copied, BATCH), completion_log_probs(adapted, BATCH), atol=0.1)
    for name, weight in adapted.named_parameters():
        assert torch.equal(weight, before[name]), name


@torch.no_grad()
def test_the_copy_of_a_model_without_adapters_gives_its_bits_and_shares_the_rest(params):
    trained = load_policy(MODELS / "sft", params, trainable=True)
    copied = unwrapped(sampling_copy(trained))
    assert torch.equal(completion_log_probs(copied, BATCH), completion_log_probs(trained, BATCH))
    assert copied.get_input_embeddings().weight is trained.get_input_embeddings().weight
    assert {layer.weight.dtype for layer in linear_layers(copied)} == {BF16}
    assert {layer.weight.dtype for layer in linear_layers(trained)} == {torch.float32}


def test_in_fp32_a_model_is_sampled_from_itself(workspace, make_params):
    model = load_policy(MODELS / "sft", make_params(), trainable=True)
    assert sampling_copy(model) is model


@pytest.mark.parametrize("engine", ["builtin", "continuous"])
def test_engines_sample_in_bf16(params, engine):
    model = load_policy(MODELS / "sft", params, trainable=True)
    found = answered(engine, model, [[4, 5, 6], [9, 3], [7, 7]], params)
    assert all(1 <= len(response.row.completion) <= 6 for response in found)
    expected = completion_log_probs(model, collate([response.row for response in found]))
    for response, row, mask in zip(found, expected, collate([r.row for r in found]).completion_mask, strict=True):
        assert torch.allclose(response.log_probs, row[mask], atol=0.1)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_the_cache_lies_in_the_precision_of_attention(params, monkeypatch):
    made = []
    room = RaggedCache._room

    def logged_room(self, states):
        made.append(room(self, states))
        return made[-1]

    monkeypatch.setattr(RaggedCache, "_room", logged_room)
    for trainable in (True, False):
        model = load_policy(MODELS / "sft", params, trainable=trainable)
        answered("builtin", model, [[4, 5, 6]], params)
    assert {each.dtype for each in made} == {BF16}


@torch.no_grad()
def test_transposed_layers_are_rounded_too(params):
    model = causal(FAMILIES["gpt2"])
    pack_if_exact(model)
    set_compute_dtype(model, BF16)
    expected = completion_log_probs(model, BATCH)
    round_frozen(model.requires_grad_(False))
    assert model.transformer.h[0].mlp.c_fc.weight.dtype == BF16
    assert torch.equal(completion_log_probs(model, BATCH), expected)


@torch.no_grad()
@pytest.mark.parametrize("rank", [0, 2])
def test_a_bf16_file_is_never_read_in_fp32_and_gives_the_same_bits(make_params, workspace, monkeypatch, rank):
    """Norms and embeddings in fp32, and a scalar head with the digits that it has in the file."""
    params = make_params(runtime={"precision": "bf16"}, lora={"rank": rank})
    AutoModelForCausalLM.from_pretrained(MODELS / "sft").bfloat16().save_pretrained(MODELS / "sft")
    save_model(new_reward_model(MODELS / "sft", params), load_tokenizer(MODELS / "sft"), MODELS / "reward")
    widest = {}

    def loaded(kind, folder, **options):
        widest[str(folder)] = options["dtype"]
        return load_with_mismatches(kind, folder, **options)

    monkeypatch.setattr(loading, "load_with_mismatches", loaded)
    policy, reward = load_policy(MODELS / "sft", params, trainable=False), load_reward(MODELS / "reward", params)
    assert set(widest.values()) == {BF16}
    fp32 = make_params()
    for narrow, wide in (
        (policy, load_policy(MODELS / "sft", fp32, trainable=False)),
        (reward, load_reward(MODELS / "reward", fp32)),
    ):
        for (name, ours), theirs in zip(narrow.named_parameters(), wide.parameters(), strict=True):
            assert torch.equal(ours.float(), theirs), name
        rounded = {id(weight) for layer in untied_layers(narrow) for weight in layer.parameters()}
        assert all((weight.dtype == BF16) == (id(weight) in rounded) for weight in narrow.parameters())
    head = score_head(reward).get_parameter("weight")
    assert not torch.equal(head, head.bfloat16().float())
    if rank:
        adapted = with_adapters(load_policy(MODELS / "sft", params, trainable=True), params.lora)
        assert set(widest.values()) == {BF16, torch.float32}  # the latter of the line above
        assert torch.equal(completion_log_probs(adapted, BATCH), completion_log_probs(policy, BATCH))


def test_layers_are_widened_one_at_a_time_and_given_back(params):
    frozen = load_policy(MODELS / "sft", params, trainable=False)
    wide, before = load_policy(MODELS / "sft", params, trainable=True), dict(frozen.named_parameters())
    with torch.no_grad():
        for name, weight in wide.named_parameters():
            weight.copy_(before[name])
        set_compute_dtype(wide, torch.float32)
        set_compute_dtype(frozen, torch.float32)
        with exactly(frozen):
            assert torch.equal(completion_log_probs(frozen, BATCH), completion_log_probs(wide, BATCH))
    assert all(weight is before[name] for name, weight in frozen.named_parameters())
    with pytest.raises(RuntimeError, match="same dtype"):
        completion_log_probs(frozen, BATCH)


@pytest.mark.parametrize("packed", [True, False])
def test_a_server_computes_in_bf16(params, packed):
    model = load_policy(MODELS / "sft", params, trainable=False)
    if not packed:
        model.set_attn_implementation("sdpa")
    served = sampling_copy(model)
    batch = live_batch(served)
    logits = [batch.add([[4, 5, 6]], [8])[-1], batch.step([7])[-1]]
    with torch.no_grad():
        row = collate([Encoded([4, 5, 6], [7, 8])])
        expected = completion_log_probs(served, row)[0, 3:]
    found = torch.stack([each.float().log_softmax(-1)[token] for each, token in zip(logits, [7, 8], strict=True)])
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
