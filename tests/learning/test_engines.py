"""The rollout engines: what PPO may ask of each, and what the second one does not promise."""

import pytest
import torch
from transformers.generation.continuous_batching import cache

from tasks.common.errors import InputError
from tasks.learning.batches import collate
from tasks.learning.models.forward import pack_if_exact, recompute_layers
from tasks.learning.models.loading import with_adapters
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.learning.sampling.engines import engine_of
from tests.families import FAMILIES, causal
from tests.tiny import EOS, tiny_models, tiny_params, tiny_policy, tiny_tokenizer

pytestmark = pytest.mark.slow

TOKENIZER = tiny_tokenizer()
PROMPTS = [[4], [5, 6, 7, 8, 9, 10, 11], [12, 3], [7, 7, 7], [15, 3], [4, 5, 6, 3], [9, 3]]
EVERY = pytest.mark.parametrize("name", ["builtin", "continuous"])


@pytest.fixture(autouse=True)
def deterministic():
    """As in a stage; torch then fills memory that nobody has written with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def a_policy():
    policy = tiny_policy()
    pack_if_exact(policy)
    return policy


def responses(name, policy, prompts=PROMPTS, seed=5, **options):
    asked = {"max_new_tokens": 12, "temperature": 1.0, "max_concurrent_sequences": 3} | options
    return engine_of(name, tiny_params().runtime)(policy, TOKENIZER, prompts, seed=seed, **asked)


def answers(name, policy, prompts=PROMPTS, **options):
    return [response.row.completion for response in responses(name, policy, prompts, **options)]


@EVERY
def test_an_engine_is_a_pure_function_that_leaves_model_and_random_state_as_they_were(name):
    policy, before = a_policy(), torch.get_rng_state()
    first = answers(name, policy)
    assert torch.equal(torch.get_rng_state(), before)
    assert policy.config._attn_implementation == "packed"
    torch.manual_seed(99)
    assert answers(name, policy) == first
    assert answers(name, a_policy()) == first
    assert answers(name, policy, seed=6) != first


@EVERY
def test_answers_stand_behind_their_prompts_and_end_at_the_first_of_all_stop_tokens(name):
    policy = a_policy()
    policy.generation_config.eos_token_id = [EOS, 6]
    found = responses(name, policy, PROMPTS * 6)
    assert [response.row.prompt for response in found] == PROMPTS * 6
    ends = {response.row.completion[-1] for response in found if response.row.length < len(response.row.prompt) + 12}
    assert ends == {EOS, 6}
    assert not any({EOS, 6} & set(response.row.completion[:-1]) for response in found)


@EVERY
def test_the_answers_to_one_prompt_differ(name):
    assert (
        len({tuple(answer) for answer in answers(name, a_policy(), [[4, 5, 3]] * 12, max_concurrent_sequences=12)}) > 6
    )


@EVERY
@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_log_probs_are_those_of_the_training_pass_at_the_temperature(name, temperature):
    policy = a_policy()
    found = responses(name, policy, temperature=temperature)
    batch = collate([response.row for response in found])
    with torch.no_grad():
        expected = completion_log_probs(policy, batch, temperature)[batch.completion_mask]
    sampled_log_probs = torch.cat([response.log_probs for response in found])
    torch.testing.assert_close(sampled_log_probs, expected, atol=1e-5, rtol=1e-5)


@EVERY
def test_tokens_are_drawn_from_the_whole_distribution_whatever_settings_the_model_brings(name):
    policy, count = a_policy(), 3000
    for setting, value in {"repetition_penalty": 5.0, "top_k": 1, "min_p": 0.5, "temperature": 0.1}.items():
        setattr(policy.generation_config, setting, value)
    found = answers(
        name, policy, [[4, 5, 3]] * count, temperature=2.0, max_concurrent_sequences=count, max_new_tokens=1
    )
    shares = torch.tensor([answer[0] for answer in found]).bincount(minlength=16) / count
    with torch.no_grad():
        expected = (tiny_policy()(torch.tensor([[4, 5, 3]])).logits[0, -1] / 2.0).softmax(0)
    # four standard deviations of a share
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt() + 1e-3).all()


@EVERY
def test_only_the_numbers_asked_for_are_answered(name):
    found = responses(name, a_policy(), indices=[5, 2])
    assert [response.row.prompt for response in found] == [PROMPTS[2], PROMPTS[5]]
    assert responses(name, a_policy(), indices=[]) == []


@EVERY
def test_a_prompt_that_leaves_no_room_is_refused(name):
    with pytest.raises(InputError, match=r"prompt of 60 tokens .* of 12 .* context of 64"):
        answers(name, a_policy(), [[4], [5] * 60])


@EVERY
def test_progress_counts_every_prompt(name):
    counts: list[int] = []
    answers(name, a_policy(), on_progress=counts.append)
    assert sum(counts) == len(PROMPTS)


@EVERY
def test_a_policy_that_computes_activations_again_in_training_samples_as_ever(name):
    saving = tiny_policy()
    saving.gradient_checkpointing_enable({"use_reentrant": False})
    recompute_layers(saving)
    pack_if_exact(saving)
    assert answers(name, saving) == answers(name, a_policy())
    assert all(layer.training for layer in saving.model.layers)


@EVERY
def test_adapters_answer_too(name):
    policy = with_adapters(a_policy(), tiny_params(lora=2).lora)
    plain = answers(name, policy)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.3 if weight.requires_grad else 0.0)
    assert answers(name, policy) != plain


@pytest.mark.parametrize("family", list(FAMILIES))
def test_continuous_batching_serves_every_family(family):
    policy = causal(FAMILIES[family])  # the sliding windows are 8 tokens, the prompts up to 20
    pack_if_exact(policy)
    found = responses("continuous", policy, [[5 + place % 30 for place in range(n)] for n in (3, 20, 1, 9, 12)])
    batch = collate([response.row for response in found])
    with torch.no_grad():
        expected = completion_log_probs(policy, batch)[batch.completion_mask]
    sampled_log_probs = torch.cat([response.log_probs for response in found])
    torch.testing.assert_close(sampled_log_probs, expected, atol=1e-5, rtol=1e-5)


def test_a_failure_inside_continuous_batching_is_reported_with_its_cure():
    policy = a_policy()
    with torch.no_grad():
        policy.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"continuous batching failed .*probability.*: set ppo.engine to builtin"):
        answers("continuous", policy)
    assert policy.config._attn_implementation == "packed"


def test_the_training_pass_says_what_continuous_batching_does_not(caplog):
    models = tiny_models()
    pack_if_exact(models.policy)  # type: ignore[arg-type]
    trainer = PPOTrainer(models, tiny_params(engine="continuous"))
    sampled = trainer.sample(PROMPTS, seed=1)
    assert all(response.entropies is None for response in sampled)
    rollouts = trainer.score(sampled, 0.05)
    assert rollouts.entropies[rollouts.mask].min() > 0
    sampled_log_probs = torch.cat([response.log_probs for response in sampled])
    torch.testing.assert_close(rollouts.log_probs[rollouts.mask], sampled_log_probs, atol=1e-5, rtol=1e-5)
    assert not caplog.messages


def test_memory_that_is_free_at_the_moment_does_not_decide_on_the_batches(monkeypatch):
    expected = answers("continuous", a_policy())
    little = (torch.device("cpu"), 2**24, 2**20, 2**20)  # total, reserved and taken bytes
    monkeypatch.setattr(cache, "get_device_and_memory_breakdown", lambda: little)
    assert answers("continuous", a_policy()) == expected
