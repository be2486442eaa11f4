"""How many tokens a model reads: up to where its positions end, or its rope would change under the rows beside one.

A rope of type longrope takes other frequencies for a whole batch as soon as one row is longer than the model's
original context: the same row would have other logits beside a longer one, in packing, and once an answer that is
being sampled has grown past it. So for such a model the context is the original one, in which that never happens.
Dynamic NTK does the same beyond max_position_embeddings, which is the context anyway. The other types (linear, yarn,
llama3, proportional) are fixed when the model is made.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.common.files import read_json

if TYPE_CHECKING:  # transformers costs seconds to import: only the functions that need it pay
    from transformers import PreTrainedConfig

SWITCHING_ROPES = ("longrope",)
ORIGINAL = "original_max_position_embeddings"


def context_of(folder: Path) -> int | None:
    """The context of a saved model in tokens; None where it is unlimited."""
    settings = read_json(folder / "config.json")
    written = settings.get("max_position_embeddings")
    if isinstance(written, int) and ORIGINAL not in str(settings):
        return written or None
    from transformers import AutoConfig  # it knows other names, and costs seconds

    return usable_context(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def context_described(folder: Path) -> str:
    """Say in words how long the context of a saved model is, and why, where it is less than its config.json says."""
    context, written = context_of(folder), read_json(folder / "config.json").get("max_position_embeddings")
    why = f" (of {written}: beyond them its rope would change under the rows beside)" if context != written else ""
    return f"a context of {context} tokens{why if isinstance(written, int) else ''}"


def usable_context(config: "PreTrainedConfig") -> int | None:
    """The context of a model in tokens, by its configuration; None where it is unlimited."""
    text = config.get_text_config()
    lengths = [getattr(text, "max_position_embeddings", None), switches_beyond(text)]
    return min((length for length in lengths if isinstance(length, int) and length > 0), default=None)


def switches_beyond(config: "PreTrainedConfig") -> int | None:
    """The longest row, in tokens, beside which a rope stays as it is; None where no length changes it."""
    ropes: Any = getattr(config, "rope_parameters", None) or {}
    nested = [rope for rope in ropes.values() if isinstance(rope, dict)]  # one for each type of layer
    lengths = [rope.get(ORIGINAL) for rope in [ropes, *nested] if rope.get("rope_type") in SWITCHING_ROPES]
    return min((length for length in lengths if length is not None), default=None)
