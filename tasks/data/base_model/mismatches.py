"""Weights that do not belong to their config.json: transformers would draw what is missing, and drop the rest."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tasks.common.errors import InputError

SAFELY: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
NAMED = 3  # tensors that a sentence names
# What names hold that another program has wrapped or changed, and how to save the model itself.
WRAPPERS = {
    "_orig_mod.": "save it again without torch.compile's wrapper: model._orig_mod.save_pretrained",
    "_fsdp_wrapped_module.": "save it again from FSDP's full state: accelerator.unwrap_model and get_state_dict",
    "_checkpoint_wrapped_module.": "save it again without the wrappers of activation checkpointing",
    "lora_": "merge the adapter first: model.merge_and_unload().save_pretrained",
    "base_model.model.": "merge the adapter first: model.merge_and_unload().save_pretrained",
    "pretrained_model.": "save the model within the value head's wrapper: model.pretrained_model.save_pretrained",
    "v_head.": "save the model within the value head's wrapper: model.pretrained_model.save_pretrained",
    "module.": "save it again without the wrapper of DataParallel, DDP or DeepSpeed: model.module.save_pretrained",
    "qweight": "give the model that it was quantised from, in 16 or 32 bits",
    "weight_packed": "give the model that it was quantised from, in 16 or 32 bits",
    "weight_scale": "give the model that it was quantised from, in 16 or 32 bits",
}
HEADS = ("score.", "classifier.", "value_head.", "regression_head.")


class Mismatches(NamedTuple):
    """Tensors of the files that the model of config.json does not have, and the other way round."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]  # name, shape in the files, shape by config.json


def load_with_mismatches(kind: Any, folder: Path, **options: object) -> tuple[Any, Mismatches]:  # noqa: ANN401
    """Load a model from safetensors on this machine, and say what did not fit.

    Args:
        kind: an Auto class of transformers.
        folder: of the model.
        options: of `from_pretrained`.
    """
    with _quiet():
        model, found = kind.from_pretrained(folder, **SAFELY, output_loading_info=True, **options)
    return model, mismatches_of(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Print no table of mismatches: they are reported in a sentence, and a new head is no mismatch."""
    from transformers import logging  # costs seconds to import: only a load pays

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def mismatches_of(found: Mapping[str, Any]) -> Mismatches:
    """Sort what `from_pretrained(..., output_loading_info=True)` found."""
    mismatched = sorted((key, tuple(stored), tuple(meant)) for key, stored, meant in found["mismatched_keys"])
    return Mismatches(sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), mismatched)


def refuse_mismatches(mismatches: Mismatches, name: str) -> None:
    """Say which tensors do not belong to the model, and the cure.

    Raises:
        InputError: there are any.
    """
    if not any(mismatches):
        return
    shapes = [f"{key} of {_shape(stored)} for {_shape(meant)}" for key, stored, meant in mismatches.mismatched]
    parts = {"missing": mismatches.missing, "unexpected": mismatches.unexpected, "mismatched": shapes}
    faults = "; ".join(f"{fault} {_some(names)}" for fault, names in parts.items() if names)
    raise InputError(f"{name}: its weights do not belong to its config.json ({faults}): {_cure(mismatches)}")


def _cure(mismatches: Mismatches) -> str:
    for mark, cure in WRAPPERS.items():
        if any(f".{mark}" in f".{key}" for key in mismatches.unexpected):
            return cure
    if any(key.startswith(HEADS) for key in mismatches.unexpected):
        return "give the language model that the head was put on"
    if mismatches.missing == ["lm_head.weight"] and not mismatches.unexpected:
        return "set tie_word_embeddings to true in config.json if its head is its embedding, else copy the folder again"
    return "copy the folder again, or give the config.json that belongs to the weights"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _shape(shape: Collection[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"
