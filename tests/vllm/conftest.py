"""What the tests with vLLM itself share. Its heads are 32 wide: narrower ones it does not compute on a CPU."""

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import EOS, PAD, WORDS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


def config(**options: Any) -> LlamaConfig:
    """A Llama of two layers with heads of 32 numbers."""
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1} | options
    return LlamaConfig(
        vocab_size=len(WORDS),
        intermediate_size=96,
        num_hidden_layers=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        initializer_range=0.2,
        **sizes,
    )


def a_policy(seed: int = 0, **options: Any) -> Any:
    """A causal model with random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(**options)).eval()


def servers() -> list[psutil.Process]:
    """All processes of vLLM's servers that this machine runs from this checkout."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words = process.info["cmdline"] or [""]
        is_one = words[0].startswith("VLLM::") or (len(words) > 1 and words[1].endswith(".venv-vllm/bin/vllm"))
        if is_one and process.info["status"] != psutil.STATUS_ZOMBIE and process.info["cwd"] == str(Path.cwd()):
            found.append(process)
    return found
