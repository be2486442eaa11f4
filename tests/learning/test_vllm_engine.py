"""PPO's engine that asks a vLLM server, with a stub in its place: weights, seeds, what is lost and what is refused."""

import logging
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tasks.common.errors import InputError
from tasks.learning import processes
from tasks.learning.batches import collate
from tasks.learning.models.forward import pack_if_exact
from tasks.learning.models.loading import with_adapters
from tasks.learning.models.outputs import completion_log_probs
from tasks.learning.sampling.engines import answer_in_shares
from tasks.learning.sampling.vllm import engine as engine_module
from tasks.learning.sampling.vllm.engine import VllmEngine
from tasks.learning.sampling.vllm.server import LOG, Server
from tests.learning.vllm_stub import Handler, VllmStub
from tests.tiny import EOS, tiny_params, tiny_policy, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPTS = [[4], [5, 6, 7, 8, 9, 10, 11], [12, 3], [7, 7, 7], [15, 3]]


def runtime(folder, url=None):
    return tiny_params(runtime={"vllm": {"url": url, "weights_folder": str(folder), "options": []}}).runtime


@pytest.fixture
def stub():
    found = VllmStub()
    yield found
    found.close()


@pytest.fixture
def engine(tmp_path, stub):
    return VllmEngine(runtime(tmp_path, stub.url))


@pytest.fixture
def starting(tmp_path, monkeypatch):
    """An engine whose own servers are stubs, and a list of those that it has started."""
    stubs = []

    def start(folder: Path, *_, longest: int, **__):
        stubs.append(VllmStub(folder))
        stubs[-1].failures += ["drops the connection"] if len(stubs) in failing else []
        held = ExitStack()
        held.callback(stubs[-1].close)
        return Server(stubs[-1].url, longest, held)

    failing: list[int] = []
    monkeypatch.setattr(engine_module, "start", start)
    found = VllmEngine(runtime(tmp_path))
    yield found, stubs, failing
    found.close()


def a_policy(lora=0):
    policy = tiny_policy()
    pack_if_exact(policy)
    return with_adapters(policy, tiny_params(lora=lora).lora)


def ask(engine, policy, prompts=PROMPTS, seed=5, **options):
    asked = {"max_new_tokens": 12, "temperature": 0.7, "max_concurrent_sequences": 3} | options
    return engine(policy, TOKENIZER, prompts, seed=seed, **asked)


def tokens(responses):
    return [response.row.completion for response in responses]


def errors(policy, responses, temperature=0.7):
    batch = collate([response.row for response in responses])
    with torch.no_grad():
        expected = completion_log_probs(policy, batch, temperature)[batch.completion_mask]
    return (expected - torch.cat([response.log_probs for response in responses])).abs()


def test_answers_stand_behind_their_prompts_with_the_policys_log_probabilities(engine):
    policy = a_policy()
    policy.generation_config.eos_token_id = [EOS, 6]
    found = ask(engine, policy, PROMPTS * 3)

    assert [response.row.prompt for response in found] == PROMPTS * 3
    ends = {answer[-1] for answer in tokens(found) if len(answer) < 12}
    assert ends == {EOS, 6}
    assert errors(policy, found).max() < 1e-5
    assert all(response.entropies is None for response in found)


def test_sampling_is_by_temperature_alone(engine, stub):
    ask(engine, a_policy(), PROMPTS[:1])

    ((*_, (path, request)),) = [stub.requests]
    settings = request["sampling_params"]
    assert (path, request["token_ids"]) == ("/inference/v1/generate", PROMPTS[0])
    assert settings.pop("seed") >= 0
    assert settings == {
        "temperature": 0.7,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 12,
        "ignore_eos": True,
        "stop_token_ids": [EOS],
        "logprobs": 0,
        "detokenize": False,
    }


def test_an_answer_is_a_function_of_seed_and_place(engine):
    policy, same = a_policy(), [[4, 5, 3]] * 6
    found = tokens(ask(engine, policy, same))

    assert len({tuple(answer) for answer in found}) > 3
    assert tokens(ask(engine, policy, same, indices=[4, 1])) == [found[1], found[4]]
    assert tokens(ask(engine, policy, same, seed=6)) != found
    assert ask(engine, policy, same, indices=[]) == []


@pytest.mark.parametrize("lora", [0, 2])
def test_every_round_is_sampled_from_the_weights_of_the_moment(engine, stub, lora):
    policy, moved = a_policy(lora), 0
    for change in (0.0, 0.3):
        with torch.no_grad():
            for weight in policy.parameters():
                moved += weight.requires_grad
                weight.add_(change * torch.randn_like(weight) if weight.requires_grad else 0.0)
        before = {name: weight.clone() for name, weight in policy.named_parameters()}
        assert errors(policy, ask(engine, policy)).max() < 1e-5
        assert all(weight.equal(before[name]) for name, weight in policy.named_parameters())
    assert moved
    paths = [path for path, _ in stub.requests if not path.endswith("generate")]
    assert paths == ["/collective_rpc", "/reset_prefix_cache"] * 2  # what the old weights have cached is forgotten


def test_in_bf16_the_server_gets_weights_in_bf16(engine, stub):
    policy = a_policy()
    policy.trueline_compute_dtype = torch.bfloat16
    ask(engine, policy)

    assert stub.model.dtype == torch.bfloat16


def test_weights_are_for_nobody_else_and_do_not_stay(tmp_path, stub):
    engine = VllmEngine(runtime(tmp_path / "below", stub.url))
    ask(engine, a_policy())
    (folder,) = (tmp_path / "below").iterdir()

    assert folder.stat().st_mode & 0o077 == 0
    del engine
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, stub):
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match=r"cannot be written to .*file/trueline-.*: set runtime.vllm.weights_folder"):
        ask(VllmEngine(runtime(tmp_path / "file", stub.url)), a_policy())


def test_a_server_that_is_lost_in_a_round_is_replaced_and_the_round_sampled_again(starting, caplog):
    engine, stubs, failing = starting
    policy, calm = a_policy(), tokens(ask(engine, a_policy()))
    engine.close()
    failing[:] = [2]

    assert tokens(ask(engine, policy)) == calm
    assert len(stubs) == 3
    assert "try 1 of 3: the round is sampled again" in caplog.text
    ask(engine, policy)
    assert len(stubs) == 3  # the new one stays


def test_a_server_whose_engine_has_died_is_lost(starting):
    engine, stubs, _ = starting
    policy, calm = a_policy(), tokens(ask(engine, a_policy()))
    stubs[0].failures.append("its engine has died")

    assert tokens(ask(engine, policy)) == calm
    assert len(stubs) == 2


def test_a_server_that_is_lost_in_every_try_ends_the_stage_as_worth_another(starting):
    from tasks.stage import classify

    engine, stubs, failing = starting
    ask(engine, a_policy())
    stubs[0].failures += ["drops the connection"]
    failing[:] = [2, 3]
    with pytest.raises(ConnectionError) as error:
        ask(engine, a_policy())

    assert len(stubs) == 3
    assert classify(error.value) == (
        "transient",
        "a connection failed (the vLLM server was lost 3 times in one round of sampling): run again when it is back",
    )


def test_a_server_that_ends_over_its_first_round_is_not_started_again(starting, tmp_path, monkeypatch):
    engine, stubs, failing = starting
    policy = a_policy()
    monkeypatch.chdir(tmp_path)
    LOG.parent.mkdir(parents=True)
    LOG.write_text("(Worker pid=7) ERROR 11-30 22:36:15 [multiproc_executor.py:1063] RuntimeError: head_dim=16\n")
    failing[:] = [1]

    sentence = r"vLLM ended in the first round of sampling \(RuntimeError: head_dim=16\): .trueline/vllm/rollouts.log"
    with pytest.raises(InputError, match=sentence):
        ask(engine, policy)
    assert len(stubs) == 1


def test_a_longer_prompt_gets_a_server_with_room_for_it(starting, monkeypatch):
    engine, stubs, _ = starting
    monkeypatch.setattr(engine_module, "ROUNDED_TO", 16)
    policy = a_policy()
    ask(engine, policy, [[4, 3]])
    ask(engine, policy, [[4, 5, 3]])
    assert len(stubs) == 1
    ask(engine, policy, [[4] * 30])
    assert len(stubs) == 2


def test_a_server_that_serves_other_weights_is_refused_with_figures(engine, stub):
    ask(engine, a_policy())
    stub.keeps_its_weights = True
    changed = a_policy()
    with torch.no_grad():
        changed.lm_head.weight.mul_(1.1)

    sentence = (
        r"the vLLM server at http\S+ serves other weights than the policy's: of \d+ sampled tokens its "
        r"log-probabilities differ from the policy's by 0\.\d+ nats on average, and rounding explains at most 0\.001: "
    )
    with pytest.raises(InputError, match=sentence):
        ask(engine, changed)


def test_an_address_where_nothing_answers_is_refused(tmp_path, stub):
    stub.close()

    with pytest.raises(InputError, match=r"no vLLM server answers at runtime.vllm.url, http\S+ \(ConnectError .*start"):
        ask(VllmEngine(runtime(tmp_path, stub.url)), a_policy())


def test_a_server_by_its_address_that_goes_away_later_is_asked_again_in_a_while(engine, stub, monkeypatch, caplog):
    pauses: list[float] = []
    monkeypatch.setattr("tasks.learning.sampling.vllm.engine.time.sleep", pauses.append)
    calm = tokens(ask(engine, a_policy()))
    stub.failures += ["drops the connection"]

    with caplog.at_level(logging.WARNING):
        assert tokens(ask(engine, a_policy())) == calm
    assert pauses == [10.0]


def test_a_server_of_another_shape_is_refused(engine, stub, tmp_path):
    stub.root = tmp_path / "served"
    other = tiny_policy()
    other.config.num_hidden_layers = 3
    other.config.save_pretrained(stub.root)

    sentence = r"model of another shape \(num_hidden_layers is 3, the policy's is 2\): start it with the policy's"
    with pytest.raises(InputError, match=sentence):
        ask(engine, a_policy())
    assert not stub.requests  # which would have ended the server


def test_a_server_that_cannot_read_the_weights_is_refused(engine, stub):
    stub.reload_error = "Worker failed with error 'no such folder'"

    with pytest.raises(InputError, match=r"cannot load the policy's weights from .* \(Worker failed .*able to read"):
        ask(engine, a_policy())


def test_another_server_than_vllms_is_refused(engine, monkeypatch):
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.reply(200, {"hello": "world"}))

    with pytest.raises(InputError, match=r"what answers at http\S+ is no vLLM server: start one as"):
        ask(engine, a_policy())


def test_a_server_that_does_not_take_tokens_is_refused(engine, stub):
    stub.failures += ["has no such address"] * 9

    with pytest.raises(InputError, match=r"refuses to answer \(status 404\): it must run as .*--enable-scale-out"):
        ask(engine, a_policy())


def test_a_prompt_that_leaves_no_room_is_refused(engine):
    with pytest.raises(InputError, match=r"prompt of 60 tokens .* of 12 .* context of 64"):
        ask(engine, a_policy(), [[4], [5] * 60])


@pytest.mark.parametrize(("is_main", "indices"), [(True, [0, 1, 2, 3, 4]), (False, [])])
def test_of_several_processes_the_main_one_asks_for_all(monkeypatch, is_main, indices):
    monkeypatch.setattr(processes, "is_main", lambda: is_main)
    asked: list[list[int]] = []

    def note(_model, indices):
        asked.append(indices)
        return indices

    answer_in_shares(note, a_policy(), PROMPTS, by_main=True)
    assert asked == [indices]
