"""Whether a base model's weights belong to its config.json, and whether transformers can run what they make."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.common.errors import InputError, is_out_of_memory, quoted
from tasks.data.base_model.mismatches import Mismatches, load_with_mismatches, refuse_mismatches
from tasks.data.base_model.model_files import CONFIG, read_settings
from tasks.data.base_model.sandbox import ExceededError, bounded
from tasks.data.base_model.soundness import check_sound
from tasks.data.base_model.weights import check_finite, tensors_of
from tasks.data.encoding.context import usable_context

if TYPE_CHECKING:  # transformers costs seconds to import: only the functions that need it pay
    from transformers import PreTrainedConfig

# To lay out a model of a thousand layers without its weights takes a tenth of this.
SECONDS, MEGABYTES = 60, 2048
LARGEST_BUFFERS = 2**32  # bytes of tables that are no weights; the largest of any family are far smaller
HALVES = {"BF16": "bfloat16", "F16": "float16"}  # as safetensors call them, and as torch does
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def check_model(folder: Path, name: str) -> None:
    """Refuse a model folder that transformers would not load as it stands, or that could not be trained.

    The weights are looked at one by one and then mapped, not read, into a model that reads a few tokens.

    Raises:
        InputError: config.json cannot be used, weights are damaged, no numbers, or belong to another config.json.
    """
    from transformers import AutoModelForCausalLM  # noqa: F401  before the fork, which would import it for itself alone
    from transformers import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    dtypes = {tensor.dtype for tensor in tensors_of(folder, name)}
    try:
        mismatches = bounded(lambda: _laid_out(folder, name), seconds=SECONDS, megabytes=MEGABYTES)
    except ExceededError:
        raise InputError(
            f"{name}: the model of {CONFIG} is too large to lay out: fix its numbers, of layers, experts, labels or"
            " positions"
        ) from None
    refuse_mismatches(mismatches, name)
    check_finite(folder, name)
    # As they are saved, so that nothing is copied; but not every family can compute in the 16 bits it is saved in.
    for dtype in [*(kind for stored, kind in HALVES.items() if stored in dtypes), "float32"]:
        try:
            _try(folder, name, dtype)
        except InputError:
            if dtype == "float32":
                raise
        else:
            return


# --- Within bounds


def _laid_out(folder: Path, name: str) -> Mismatches:
    """Lay out the model of config.json without memory for its weights, and put the files' tensors beside it."""
    from transformers import AutoModelForCausalLM

    config = _config(folder, name)
    _check_ids(folder, config, name)
    try:
        model, mismatches = load_with_mismatches(
            AutoModelForCausalLM, folder, device_map="meta", ignore_mismatched_sizes=True
        )
    except Exception as error:  # of any type, as each family checks its values in its own way
        raise _unusable(name, error) from None
    buffers = sum(buffer.nbytes for _, buffer in model.named_buffers())
    if buffers > LARGEST_BUFFERS:
        raise ExceededError
    return mismatches


def _config(folder: Path, name: str) -> "PreTrainedConfig":
    from transformers import AutoConfig

    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each family checks its values in its own way
        raise _unusable(name, error) from None
    return config


def _check_ids(folder: Path, config: "PreTrainedConfig", name: str) -> None:
    """Every token that the settings name has a row in the embedding."""
    text = config.get_text_config()
    rows = getattr(text, "vocab_size", None)
    if not isinstance(rows, int) or rows < 1:
        raise InputError(f"{name}: {CONFIG} has no vocab_size above 0: give the {CONFIG} that belongs to the weights")
    files = [CONFIG, *(file for file in ("generation_config.json",) if (folder / file).exists())]
    for file in files:
        for key, value in _ids(read_settings(folder / file, name)):
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < rows:
                raise InputError(
                    f"{name}: {key} in {file} is {quoted(value)}, no row of the embedding's {rows}: fix it, or set it"
                    " to null"
                )


def _ids(settings: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    text = settings.get("text_config")
    for part in (settings, text if isinstance(text, dict) else {}):
        for key in IDS:
            value = part.get(key)
            yield from ((key, each) for each in (value if isinstance(value, list) else [value]) if each is not None)


# --- As it is


def _try(folder: Path, name: str, dtype: str) -> None:
    """Map the weights from the files into a model, and have it read a few tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model, _ = load_with_mismatches(AutoModelForCausalLM, folder, dtype=dtype)
        ids = torch.tensor([[0, 1, 0]]) % len(model.get_input_embeddings().weight)
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        frequencies = [buffer for key, buffer in model.named_buffers() if key.endswith("inv_freq")]
        if not all(each.isfinite().all() for each in (logits, *frequencies)):
            raise InputError(
                f"{name}: the model's logits or its rope's frequencies are not finite: fix {CONFIG}, or take another"
                " model"
            )
        check_sound(model, usable_context(model.config), name)
    except InputError:
        raise
    except Exception as error:
        raise _unusable(name, error) from None


def _unusable(name: str, error: Exception) -> Exception:
    """The sentence for what a library raised over a config.json, unless memory ran out."""
    if is_out_of_memory(error):
        return error
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    reason = (kind + " ".join(str(error).split()))[:200]
    return InputError(f"{name}: transformers cannot use {CONFIG} ({reason}): fix it, or choose another model")
