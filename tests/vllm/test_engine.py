"""PPO's engine with vLLM itself: what it samples, whose weights it serves, and what is left when something dies."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tasks.common.errors import InputError
from tasks.learning.batches import collate
from tasks.learning.models.loading import with_adapters
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.sampling.vllm.client import Client
from tasks.learning.sampling.vllm.engine import VllmEngine
from tests.test_children import eventually
from tests.tiny import EOS, tiny_params, tiny_tokenizer
from tests.vllm.conftest import a_policy, servers

ROOT = Path(__file__).parents[2]
TOKENIZER = tiny_tokenizer()
PROMPTS = [[4], [5, 6, 7, 8, 9, 10, 11], [12, 3], [7] * 40, [15, 3]] * 4
KILLED = """
import os, pathlib, signal, sys
import torch
from tests.tiny import tiny_tokenizer
from tests.vllm.conftest import a_policy
from tests.vllm.test_engine import ask, engine_at
policy = a_policy()
policy.trueline_compute_dtype = torch.bfloat16
assert len(ask(engine_at(pathlib.Path(sys.argv[1])), policy)) == 20
print("answered", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def engine_at(folder, url=None):
    vllm = {"url": url, "weights_folder": str(folder), "options": []}
    return VllmEngine(tiny_params(runtime={"vllm": vllm, "max_concurrent_sequences": 32}).runtime)


@pytest.fixture(scope="module", autouse=True)
def checkout(tmp_path_factory):
    """A working folder of their own, by which servers are known from those of others."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "params.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def engine(tmp_path_factory, checkout):
    found = engine_at(tmp_path_factory.mktemp("weights"))
    yield found
    found.close()
    assert eventually(lambda: not servers(checkout))


def ask(engine, policy, prompts=PROMPTS, seed=5, **options):
    asked = {"max_new_tokens": 20, "temperature": 0.7, "max_concurrent_sequences": 32} | options
    return engine(policy, TOKENIZER, prompts, seed=seed, **asked)


def tokens(responses):
    return [response.row.completion for response in responses]


def errors(policy, responses, temperature=0.7):
    batch = collate([response.row for response in responses])
    with torch.no_grad():
        expected = completion_log_probs(policy, batch, temperature)[batch.completion_mask]
    return (expected - torch.cat([response.log_probs for response in responses])).abs()


@pytest.mark.parametrize("lora", [0, 2])
def test_every_round_has_the_log_probabilities_of_the_moments_policy(engine, lora):
    policy = with_adapters(a_policy(), tiny_params(lora=lora).lora)
    for change in (0.0, 0.05):  # the prompts are the same: what the old weights have cached must be forgotten
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(change * torch.randn_like(weight) if weight.requires_grad else 0.0)
        found = ask(engine, policy)
        assert [response.row.prompt for response in found] == PROMPTS
        assert errors(policy, found).max() < 1e-4


def test_answers_end_at_the_first_of_the_policys_stop_tokens_and_repeat(engine):
    policy = a_policy()
    policy.generation_config.eos_token_id = [EOS, 6]
    found = tokens(ask(engine, policy))

    assert {answer[-1] for answer in found if len(answer) < 20} == {EOS, 6}
    assert not any({EOS, 6} & set(answer[:-1]) for answer in found)
    assert tokens(ask(engine, policy)) == found
    assert tokens(ask(engine, policy, indices=[7, 2])) == [found[2], found[7]]
    assert tokens(ask(engine, policy, seed=6)) != found


def test_tokens_are_drawn_from_the_whole_distribution_whatever_settings_the_model_brings(engine):
    policy, count = a_policy(), 800
    for setting, value in {"repetition_penalty": 5.0, "top_k": 1, "temperature": 0.1}.items():
        setattr(policy.generation_config, setting, value)
    found = tokens(ask(engine, policy, [[4, 5, 3]] * count, temperature=2.0, max_new_tokens=1))

    shares = torch.tensor([answer[0] for answer in found]).bincount(minlength=16) / count
    with torch.no_grad():
        expected = (policy(torch.tensor([[4, 5, 3]])).logits[0, -1] / 2.0).softmax(0)
    # four standard deviations of a share
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt() + 1e-3).all()


def test_other_weights_than_the_policys_are_refused(engine, monkeypatch):
    ask(engine, a_policy())
    monkeypatch.setattr(Client, "load", lambda *_: None)

    with pytest.raises(InputError, match=r"serves other weights than the policy's: .* by \d\S+ nats on average"):
        ask(engine, a_policy(seed=1))


def test_an_engine_that_dies_in_a_round_is_replaced_and_the_round_sampled_again(engine, checkout, caplog):
    policy, many = a_policy(), [[4, 5, 3]] * 400
    calm = tokens(ask(engine, policy, many, max_new_tokens=40))
    killed: list[int] = []

    def kill(_: int):
        for process in [] if killed else servers(checkout):
            if "EngineCore" in process.cmdline()[0]:
                killed.append(process.pid)
                process.kill()

    again = tokens(ask(engine, policy, many, max_new_tokens=40, on_progress=kill))

    assert killed
    assert "the round is sampled again" in caplog.text
    assert again == calm


def test_a_server_of_another_model_is_refused_and_lives_on(engine, tmp_path):
    policy = a_policy()
    ask(engine, policy)
    other = engine_at(tmp_path, engine._server.url)

    with pytest.raises(InputError, match=r"of another shape \(hidden_size is 64, the policy's is 96\): start it with"):
        ask(other, a_policy(hidden_size=96, num_attention_heads=3))
    assert errors(policy, ask(engine_at(tmp_path, engine._server.url), policy)).max() < 1e-4


def test_heads_that_vllm_does_not_compute_are_its_reason(tmp_path):
    sentence = r"vLLM ended in the first round of sampling \(.*head_dim=16.*\): .trueline/vllm/rollouts.log says more"
    with pytest.raises(InputError, match=sentence):
        ask(engine_at(tmp_path), a_policy(num_attention_heads=4))


def test_a_stage_that_is_killed_leaves_no_process(engine, checkout, tmp_path):
    engine.close()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    ended = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)

    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "answered\n"), ended.stderr
    assert eventually(lambda: not servers(checkout))
