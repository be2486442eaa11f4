"""Shapes of models and settings, for tests of memory."""

from typing import Any

import yaml
from transformers import LlamaConfig

from tasks.settings.params import PARAMS_FILE, Params, parse_params
from tests.conftest import ROOT

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
}


def shape(**others: Any) -> LlamaConfig:
    return LlamaConfig(pad_token_id=0, eos_token_id=1, **{**SHAPE, **others})


def settings(**sections: dict[str, Any]) -> Params:
    """The shipped settings, with keys of sections changed."""
    found = yaml.safe_load((ROOT / PARAMS_FILE).read_text(encoding="utf-8"))
    for section, values in sections.items():
        found[section] |= values
    return parse_params(found)
