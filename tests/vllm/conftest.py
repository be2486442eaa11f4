"""What the tests with vLLM itself share. Its heads are 32 wide: narrower ones it does not compute on a CPU."""

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import make_tokenizer
from tests.registry.conftest import empty_database, finished, quiet_dvc, real_models
from tests.tiny import EOS, PAD, WORDS

__all__ = ["empty_database", "finished", "quiet_dvc", "real_models"]  # fixtures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


def config(**options: Any) -> LlamaConfig:
    """A Llama of two layers with heads of 32 numbers."""
    sizes = {
        "vocab_size": len(WORDS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
    }
    return LlamaConfig(bos_token_id=None, initializer_range=0.2, **(sizes | options))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the one of all tests, with wider heads."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    LlamaForCausalLM(config(vocab_size=len(tokenizer), max_position_embeddings=4096, **ids)).save_pretrained(folder)
    return folder


def a_policy(seed: int = 0, **options: Any) -> Any:
    """A causal model with random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(**options)).eval()


def servers(folder: Path) -> list[psutil.Process]:
    """All processes of vLLM's servers that were started from a working folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        words = process.info["cmdline"] or [""]
        is_one = words[0].startswith("VLLM::") or (len(words) > 1 and words[1].endswith(".venv-vllm/bin/vllm"))
        if is_one and process.info["status"] != psutil.STATUS_ZOMBIE and process.info["cwd"] == str(folder):
            found.append(process)
    return found
