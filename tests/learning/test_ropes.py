"""Rows and answers are read alike alone and beside other rows, whatever a rope does beyond the original context."""

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedConfig

from tasks.common.errors import InputError
from tasks.data.encoding import context
from tasks.data.encoding.context import usable_context
from tasks.data.encoding.tokens import Encoded
from tasks.learning.batches import collate
from tasks.learning.models import forward
from tasks.learning.models.forward import is_packed, pack_if_exact
from tasks.learning.models.loading import context_length, load_policy
from tasks.learning.models.outputs import token_outputs
from tasks.learning.sampling.sampler import Response, generate
from tasks.settings.params import Params
from tests.families import SHAPE
from tests.tiny import tiny_tokenizer

ORIGINAL, LONG = 16, 64
ROPE: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL}
ROPE |= {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "factor": 4.0}
SIZES = SHAPE | {"max_position_embeddings": LONG, "num_key_value_heads": 4, "vocab_size": 16}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, rope_parameters=ROPE),
    "phi3": Phi3Config(**SIZES, original_max_position_embeddings=ORIGINAL, rope_parameters=ROPE),
    "dynamic": LlamaConfig(
        **SIZES | {"max_position_embeddings": ORIGINAL},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "yarn": LlamaConfig(
        **SIZES | {"max_position_embeddings": ORIGINAL},
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 4,
        },
    ),
}
# One short row, and rows that fill the context, one of which begins as the short one does.
ROWS = [
    Encoded([5, 6, 7], [8, 9]),
    Encoded([11, 4], [12, 13, 14, 15, 3, 2, 4, 5, 6, 7, 8, 9, 10, 11]),
    Encoded([5, 6, 7], [3, 8, 4, 9, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
]
PROMPTS = [[4], *([first, 6, 7, 8, 9, 10, 11, 12] for first in range(4, 10)), [12, 3], [7, 7, 7]]


@pytest.fixture(params=[(name, packs) for name in CONFIGS for packs in (True, False)], ids=str)
def policy(request: pytest.FixtureRequest) -> Any:
    name, packs = request.param
    return read_as(CONFIGS[name], packs=packs)


def read_as(config: PreTrainedConfig, *, packs: bool) -> Any:
    torch.manual_seed(1)
    policy: Any = AutoModelForCausalLM.from_config(deepcopy(config)).eval()
    if packs:
        pack_if_exact(policy)
        assert is_packed(policy)
    return policy


def log_probs(policy: Any, rows: list[Encoded], row: int) -> torch.Tensor:
    return token_outputs(policy, collate(rows)).log_probs[row][collate(rows).completion_mask[row]]


def answers(policy: Any, prompts: list[list[int]], **options: Any) -> list[Response]:
    settings = {"max_new_tokens": ORIGINAL - 8, "temperature": 1.0, "seed": 3, "max_concurrent_sequences": 4} | options
    return generate(policy, tiny_tokenizer(), prompts, **settings)


def test_a_row_is_read_alike_alone_and_beside_rows_that_fill_the_context(policy: Any):
    assert context_length(policy) == ORIGINAL == ROWS[1].length == ROWS[2].length
    for number, row in enumerate(ROWS):
        alone, beside = log_probs(policy, [row], 0), log_probs(policy, ROWS, number)
        torch.testing.assert_close(beside, alone, atol=1e-5, rtol=0)


def test_answers_that_fill_the_context_are_those_of_the_training_forward_and_of_each_prompt_alone(policy: Any):
    of_all = answers(policy, PROMPTS)
    assert max(response.row.length for response in of_all) == ORIGINAL
    for number, response in enumerate(of_all):
        assert response.row == answers(policy, PROMPTS, indices=[number])[0].row
        torch.testing.assert_close(log_probs(policy, [response.row], 0), response.log_probs, atol=1e-4, rtol=0)


def test_an_answer_that_might_leave_the_context_is_refused(policy: Any):
    with pytest.raises(InputError, match="exceed the model's context of 16"):
        answers(policy, PROMPTS, max_new_tokens=ORIGINAL - 7)


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_beyond_the_original_context_packing_would_be_found_out(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(forward, "usable_context", lambda _: LONG)
    policy: Any = AutoModelForCausalLM.from_config(deepcopy(CONFIGS[name])).eval()
    with caplog.at_level(logging.WARNING):
        pack_if_exact(policy)
    assert not is_packed(policy)
    assert "hidden states would differ by" in caplog.text


def test_a_rope_that_no_list_knows_is_found_out_when_the_model_is_loaded(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch
):
    read_as(CONFIGS["llama"], packs=False).save_pretrained(tmp_path)
    assert is_packed(load_policy(tmp_path, params, trainable=False))
    monkeypatch.setattr(context, "SWITCHING_ROPES", ())
    assert usable_context(CONFIGS["llama"]) == LONG
    with pytest.raises(InputError, match="beside a longer row"):
        load_policy(tmp_path, params, trainable=False)
