"""The tensors of a base model, looked at one by one, so that memory does not depend on the size of the model."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.common.errors import InputError, quoted
from tasks.data.base_model.model_files import weight_files

if TYPE_CHECKING:  # torch costs seconds to import: only the functions that need it pay
    from torch import Tensor

FLOATS = ("F64", "F32", "F16", "BF16")  # what training begins from, as safetensors call it
NUMBERS_AT_ONCE = 2**24  # of a tensor that are looked at together


class Stored(NamedTuple):
    """A tensor as a file holds it."""

    name: str
    file: str
    dtype: str  # as safetensors call it
    shape: tuple[int, ...]


def tensors_of(folder: Path, name: str) -> list[Stored]:
    """List the tensors that transformers loads from a folder; their values are not read.

    Raises:
        InputError: a file is damaged, a tensor is there twice, or one holds no floating-point numbers.
    """
    found: dict[str, Stored] = {}
    for tensor in (each for file in weight_files(folder, name) for each in _headers(folder / file, name)):
        if tensor.name in found:
            files = f"{found[tensor.name].file} and {tensor.file}"
            raise InputError(f"{name}: {quoted(tensor.name)} is in {files}: copy the folder again")
        found[tensor.name] = tensor
    if strange := [tensor for tensor in found.values() if tensor.dtype not in FLOATS]:
        first = strange[0]
        raise InputError(
            f"{name}: {quoted(first.name)} in {first.file} holds {first.dtype} numbers, as quantised weights do"
            f"{_and_more(len(strange) - 1)}: give the model that it was made from, in 16 or 32 bits"
        )
    return list(found.values())


def read_tensors(folder: Path, prefix: str) -> "Iterator[tuple[str, Tensor]]":
    """Read the tensors whose names begin so, as they are stored."""
    from safetensors import safe_open

    for stored in tensors_of(folder, str(folder)):
        if stored.name.startswith(prefix):
            with safe_open(folder / stored.file, framework="pt") as tensors:
                yield stored.name, tensors.get_tensor(stored.name)


def count_parameters(folder: Path, name: str) -> int:
    """Count the numbers in all weights that transformers loads from a folder."""
    return sum(math.prod(tensor.shape) for tensor in tensors_of(folder, name))


def check_finite(folder: Path, name: str) -> None:
    """Refuse weights that are no numbers.

    Raises:
        InputError: one is NaN or infinite.
    """
    from safetensors import safe_open

    for file in weight_files(folder, name):
        with safe_open(folder / file, framework="pt") as tensors:
            for key in sorted(tensors.keys()):
                if not _is_finite(tensors.get_tensor(key)):
                    raise InputError(
                        f"{name}: {quoted(key)} in {file} holds NaN or infinity, so training that made it has diverged,"
                        " or the file is damaged: copy the folder again, or take an earlier checkpoint"
                    )


def _is_finite(tensor: "Tensor") -> bool:
    """The smallest and the largest tell, for both are NaN where anything is; and quickly."""
    numbers = tensor.flatten()
    starts = range(0, len(numbers), NUMBERS_AT_ONCE)
    ends = (numbers[start : start + NUMBERS_AT_ONCE].aminmax() for start in starts)
    return all(math.isfinite(end) for pair in ends for end in pair)


def _headers(path: Path, name: str) -> Iterator[Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118
                tensor = tensors.get_slice(key)
                yield Stored(key, path.name, tensor.get_dtype(), tuple(tensor.get_shape()))
    except (SafetensorError, OSError) as error:  # OSError: a file too short to be mapped
        raise InputError(f"{name}: {path.name} is damaged ({error}): copy the folder again") from None


def _and_more(count: int) -> str:
    return f", and {count} more" if count else ""
