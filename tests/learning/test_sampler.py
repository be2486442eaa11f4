"""Sampling: what comes out does not hang on batches, padding, stray settings of a model or the state of a generator."""

import pytest
import torch

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import Encoded
from tasks.learning.batches import collate
from tasks.learning.models.forward import pack_if_exact, recompute_layers
from tasks.learning.models.outputs import token_outputs
from tasks.learning.sampling.kv_cache import COLUMNS_AT_ONCE, RaggedCache
from tasks.learning.sampling.sampler import generate, sample, stop_tokens
from tests.families import FAMILIES, causal
from tests.tiny import EOS, tiny_policy, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPTS = [[4], [5, 6, 7, 8, 9, 10, 11], [12, 3], [7, 7, 7], [15, 3], [4, 5, 6, 3], [9, 3]]


@pytest.fixture(scope="module", params=["packed", "padded"])
def policy(request):
    policy = tiny_policy()
    if request.param == "packed":
        pack_if_exact(policy)
    return policy


def answers(policy, prompts=PROMPTS, temperature=1.0, seed=5, max_concurrent_sequences=7, max_new_tokens=12, **options):
    responses = generate(
        policy,
        TOKENIZER,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        max_concurrent_sequences=max_concurrent_sequences,
        **options,
    )
    return [response.row.completion for response in responses]


@torch.no_grad()
def greedy_one_by_one(policy, prompt, count):
    """No cache, no padding, no batch."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(policy(torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def test_greedy_equals_the_whole_forward_token_by_token(policy):
    expected = [greedy_one_by_one(policy, prompt, 12) for prompt in PROMPTS]
    assert answers(policy, temperature=0) == expected
    assert len({tuple(answer) for answer in expected}) > 3  # the prompts do matter


def test_greedy_equals_transformers_own_generate(policy):
    own = answers(policy, temperature=0, prompts=[[4, 5, 6]], max_new_tokens=8)[0]
    ids = torch.tensor([[4, 5, 6]])
    theirs = policy.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
    assert own == theirs[0, 3:].tolist()


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_the_batch_does_not_matter(policy, at_once):
    assert answers(policy, max_concurrent_sequences=at_once) == answers(policy)


def test_a_pure_function_of_its_arguments(policy):
    before = torch.get_rng_state()
    first = answers(policy)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert answers(policy) == first
    assert answers(policy, seed=6) != first


def test_responses_end_at_the_first_stop_token(policy):
    for answer in answers(policy, prompts=PROMPTS * 8):
        assert 1 <= len(answer) <= 12
        assert EOS not in answer[:-1]
        assert answer[-1] == EOS or len(answer) == 12


def test_stop_tokens_of_the_generation_config_count_too():
    policy = tiny_policy()
    policy.generation_config.eos_token_id = [EOS, 6]
    assert stop_tokens(policy, TOKENIZER) == [EOS, 6]
    found = answers(policy, prompts=PROMPTS * 8)
    assert any(answer[-1] == 6 for answer in found)
    assert not any(6 in answer[:-1] for answer in found)


def test_sampling_settings_that_a_model_brings_are_left_out_of_account(policy):
    stray = tiny_policy()
    for name, value in {"repetition_penalty": 5.0, "top_k": 1, "min_p": 0.5, "no_repeat_ngram_size": 1}.items():
        setattr(stray.generation_config, name, value)
    assert answers(stray) == answers(policy)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_tokens_are_drawn_from_the_softmax_of_the_logits_over_the_temperature(policy, temperature):
    count = 4000
    found = answers(
        policy, [[4, 5, 3]] * count, temperature=temperature, max_concurrent_sequences=count, max_new_tokens=1
    )
    shares = torch.tensor([answer[0] for answer in found]).bincount(minlength=16) / count
    with torch.no_grad():
        expected = (policy(torch.tensor([[4, 5, 3]])).logits[0, -1] / temperature).softmax(0)
    # four standard deviations of a share
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt() + 1e-3).all()


def test_the_inverse_of_the_distribution_by_hand():
    logits = torch.tensor([[0.25, 0.5, 0.0, 0.25]]).log().expand(5, 4)
    noise = torch.tensor([0.0, 0.2499, 0.2501, 0.7501, 1 - 1e-9], dtype=torch.float64)
    # cumulative .25, .75, .75, 1: token 2 has no chance
    assert sample(logits, noise, 1.0).tokens.tolist() == [0, 0, 1, 3, 3]


def test_log_probs_and_entropies_are_those_of_the_training_forward(policy):
    responses = generate(
        policy, TOKENIZER, PROMPTS, max_new_tokens=12, temperature=0.7, seed=5, max_concurrent_sequences=3
    )
    batch = collate([response.row for response in responses])
    with torch.no_grad():
        expected = token_outputs(policy, batch, temperature=0.7)
    for place, response in enumerate(responses):
        mask = batch.completion_mask[place]
        torch.testing.assert_close(response.log_probs, expected.log_probs[place][mask], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(response.entropies, expected.entropies[place][mask], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_answers_as_without_cache_or_batch(family):
    policy = causal(FAMILIES[family])  # the sliding windows are 8 tokens, the prompts up to 20
    prompts = [[5 + place % 30 for place in range(length)] for length in (3, 20, 1, 9, 12)]
    expected = [greedy_one_by_one(policy, prompt, 9) for prompt in prompts]
    pack_if_exact(policy)
    for at_once in (2, 5):
        found = answers(policy, prompts, temperature=0, max_new_tokens=9, max_concurrent_sequences=at_once)
        assert [greedy[:9] for greedy in expected] == found


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
def test_a_policy_that_computes_activations_again_in_training_samples_as_ever(packs):
    plain, saving = tiny_policy(), tiny_policy()
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    recompute_layers(saving)
    for policy in (plain, saving) if packs else ():
        pack_if_exact(policy)
    assert answers(saving) == answers(plain)
    assert all(layer.training for layer in saving.model.layers)


def test_a_prompt_may_fill_the_context_but_for_its_answer(policy):
    # a slot whose answer is done goes on beside the others, and must not run out of the context
    prompts = [[5] * 52, [4], [5, 6]]
    alone = [answers(policy, [prompt], seed=5)[0] for prompt in prompts[:1]]
    assert answers(policy, prompts)[0] == alone[0]


def test_progress_counts_every_prompt(policy):
    counts: list[int] = []
    answers(policy, max_concurrent_sequences=3, on_progress=counts.append)
    assert sum(counts) == len(PROMPTS)
    assert min(counts) > 0


def test_no_prompts_no_answers(policy):
    assert answers(policy, prompts=[]) == []


def test_a_prompt_that_leaves_no_room_is_refused(policy):
    with pytest.raises(InputError, match=r"prompt of 60 tokens .* of 12 .* context of 64"):
        answers(policy, prompts=[[4], [5] * 60])


def test_logits_that_are_no_numbers_still_give_a_token_of_the_vocabulary():
    """A broken policy must reach the check that says so, not fail as an index out of range before it."""
    logits = torch.full((2, 10), float("nan"))
    assert sample(logits, torch.tensor([0.0, 0.9]), 1.0).tokens.max() < 10


def test_the_cache_grows_with_the_answers_and_no_further():
    """Room for the longest answer there may be is not made before one is as long; what was read stays."""
    policy = tiny_policy()
    pack_if_exact(policy)
    cache = RaggedCache(2, 1000, torch.device("cpu"))
    prompts = [[4, 5, 6], [7, 8]]
    packing = collate([Encoded(prompt, []) for prompt in prompts]).packing
    with torch.no_grad():
        cache.read_prompts(policy, packing, torch.tensor([3, 2]), torch.tensor([0, 1]))
        for _ in range(40):
            logits = cache.read_tokens(policy, torch.tensor([9, 10]))
        assert {layer.shape[2] for layer in cache._keys} == {COLUMNS_AT_ONCE}
        expected = policy(torch.tensor([[4, 5, 6, *[9] * 40]])).logits[0, -1]
    torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=0)
    cache._make_room(COLUMNS_AT_ONCE + 1)
    assert {layer.shape[2] for layer in (*cache._keys, *cache._values)} == {2 * COLUMNS_AT_ONCE}
    cache._make_room(999)
    assert {layer.shape[2] for layer in cache._keys} == {1000}
