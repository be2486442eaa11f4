from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, Phi3Config, PreTrainedConfig

from tasks.common.errors import InputError
from tasks.data.base_model.soundness import check_sound
from tasks.data.encoding.context import context_described, context_of, usable_context
from tests.families import SHAPE

ORIGINAL, LONG = 16, 64
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "factor": 4.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "longrope": FACTORS | {"original_max_position_embeddings": ORIGINAL},
}


def llama(rope_type: str) -> PreTrainedConfig:
    rope = {"rope_type": rope_type, "rope_theta": 10000.0} | ROPES[rope_type]
    return LlamaConfig(**SHAPE | {"max_position_embeddings": LONG}, rope_parameters=rope)


def phi3(rope_type: str = "longrope") -> PreTrainedConfig:
    rope = {"rope_type": rope_type, "rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL} | FACTORS
    sizes = SHAPE | {"max_position_embeddings": LONG, "num_key_value_heads": 4}
    return Phi3Config(**sizes, original_max_position_embeddings=ORIGINAL, rope_parameters=rope)


def model_of(config: PreTrainedConfig) -> Any:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config).eval()


def logits_beside(model: Any, length: int) -> torch.Tensor:
    """Logits (6, V) of a row of six tokens beside one of `length`, padded on the right."""
    row = torch.arange(3, 9)
    ids = torch.zeros(2, max(length, 6), dtype=torch.long)
    ids[0, :6], ids[1, :length] = row, torch.arange(length) % 30 + 3
    mask = torch.arange(ids.shape[1])[None] < torch.tensor([[6], [length]])
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
    return logits[0, :6]


@pytest.mark.parametrize("rope_type", ROPES)
def test_up_to_the_context_no_row_changes_what_stands_beside_it(rope_type: str):
    model = model_of(llama(rope_type))
    context = usable_context(model.config)
    assert context == (ORIGINAL if rope_type == "longrope" else LONG)
    alone = logits_beside(model, 6)
    for length in (7, ORIGINAL, context):
        torch.testing.assert_close(logits_beside(model, length), alone, atol=1e-5, rtol=0)
    check_sound(model, context, "given")


@pytest.mark.parametrize(("rope_type", "switches_at"), [("longrope", ORIGINAL), ("dynamic", LONG)])
def test_one_token_more_changes_all_rows_and_would_be_refused(rope_type: str, switches_at: int):
    model = model_of(llama(rope_type))
    change = logits_beside(model, switches_at + 1) - logits_beside(model, 6)
    assert change.abs().max() > 0.01  # a thousand times what rounding does; NTK's frequencies move with each token
    with pytest.raises(InputError, match="beside a longer row"):
        check_sound(model, 4 * switches_at, "given")


def test_families_that_keep_the_original_context_elsewhere_or_by_former_names(tmp_path: Path):
    assert usable_context(phi3()) == usable_context(phi3("yarn")) == usable_context(phi3("su")) == ORIGINAL
    nested = llama("default")
    nested.rope_parameters = {"full_attention": ROPES["longrope"] | {"rope_type": "longrope"}, "sliding_attention": {}}
    assert usable_context(nested) == ORIGINAL
    phi3().save_pretrained(tmp_path)
    assert context_of(tmp_path) == ORIGINAL
    assert context_described(tmp_path) == (
        "a context of 16 tokens (of 64: beyond them its rope would change under the rows beside)"
    )
    llama("yarn").save_pretrained(tmp_path)
    assert context_described(tmp_path) == "a context of 64 tokens"


def test_a_model_may_have_no_bound():
    assert usable_context(BloomConfig(hidden_size=32, n_head=4)) is None
