"""An exported version in vLLM: by `trueline serve --engine vllm`, and by vLLM's own protocol, as a judge's server."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.serving.limits import Limits
from flows.serving.loaders import loader_of
from tasks.common.errors import InputError
from tasks.evaluation.llm_judge.comparisons import check
from tasks.learning.sampling.vllm.server import program
from tasks.registry.export.folders import export
from tasks.settings.params import LlmJudge, load_params
from tests.flows.serving.running import Aliases, running

OPTIONS = ["--dtype=float32", "--enforce-eager", "--max-model-len=4096"]


@pytest.fixture
def exported(real_models, tmp_path, monkeypatch):
    monkeypatch.chdir(real_models)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    export(load_params(), "champion", tmp_path / "out")
    return tmp_path / "out"


def greedy(folder: Path, text: str, count: int) -> str:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        answer = model.generate(**prompt, max_new_tokens=count, do_sample=False)
    written: str = tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return written.strip()


def test_it_answers_as_transformers_does_and_can_be_asked_as_a_judge(exported, tmp_path):
    params = load_params()
    backends: list[Any] = []
    load = loader_of(params, Limits(), [str(program()), *OPTIONS])

    def loaded(wanted):
        backends.append(load(exported, wanted))
        return backends[-1]

    with running(params, loaded, Aliases(champion=1), tmp_path / "feedback") as server:
        answer = server.chat("please send the order back", max_tokens=12, temperature=0).json()
        assert answer["choices"][0]["message"]["content"] == greedy(exported, "please send the order back", 12)

        judge = LlmJudge(url=f"{backends[0]._url}/v1", model="trueline-policy/1", prompts=None)
        with pytest.raises(InputError, match="gives no verdict on two answers"):  # it speaks, but has learned nothing
            check(judge)
