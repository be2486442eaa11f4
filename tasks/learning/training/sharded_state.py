"""Trainable weights and the state of their optimisers in a folder, by torch.distributed.checkpoint, as safetensors.

Each process writes its own shards, and of what all have one writes it; nothing is gathered. On the way back each reads
the parts that its shards need, so any number of processes can go on from what another number has written. The library
is imported where something is saved, for that takes half a second.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from tasks.learning.sharding import trainable_weights

Copies = Mapping[str, Mapping[str, Tensor]]  # by the name of the model and of the weight

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

BYTES_OF_FILE = 1 << 26  # of all processes together; a process makes one such file at a time in memory
LOGGER = "c10d-NullHandler-dcp_logger"  # of that library
WEIGHT = "weight"
STEP = "step"  # how many AdamW has taken, without a dimension
COPY = "copy"  # of a weight, as it was at another step
MODEL = "model"  # the name of a model that learns alone
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = (STEP, *MOMENTS, *(f"{moment}_scale" for moment in MOMENTS))  # AdamW's state of a weight; scales: in 8 bits


def save_state(
    models: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer], copies: Copies, folder: Path
) -> None:
    """Write the files of a state; all processes take part.

    Args:
        models: by a name without a dot.
        optimisers: of their trainable weights, by the same names.
        copies: of trainable weights, of all of a model or of none.
        folder: exists, on a file system that all processes share.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors = {
        _key(name, kind, path): _with_dimension(tensor)
        for name, model in models.items()
        for path, weight in trainable_weights(model).items()
        for kind, tensor in ({WEIGHT: weight.detach()} | optimisers[name].state.get(weight, {})).items()
    }
    tensors |= {_key(name, COPY, path): tensor for name, found in copies.items() for path, tensor in found.items()}
    with _first_error():
        writer = HuggingFaceStorageWriter(str(folder), _file_numbers(tensors), save_distributed=True)
        save(tensors, storage_writer=writer, no_dist=not distributed.is_initialized())


def load_state(models: Mapping[str, nn.Module], optimisers: Mapping[str, Optimizer], folder: Path) -> Copies:
    """Set weights and optimisers, sharded or not, to what `save_state` has written; all processes take part.

    Returns:
        The copies, on the CPU, sharded as the weights are.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    saved = {
        key: found
        for key, found in reader.read_metadata().state_dict_metadata.items()
        if isinstance(found, TensorStorageMetadata)
    }
    tensors: dict[str, Tensor] = {}
    copies: dict[str, dict[str, Tensor]] = {}
    for name, model in models.items():
        for path, weight in trainable_weights(model).items():
            tensors[_key(name, WEIGHT, path)] = weight.detach()
            state = optimisers[name].state[weight] = {
                kind: _empty(weight, kind, saved[key]) for kind in KINDS if (key := _key(name, kind, path)) in saved
            }
            tensors |= {_key(name, kind, path): _with_dimension(tensor) for kind, tensor in state.items()}
            if (key := _key(name, COPY, path)) in saved:
                copies.setdefault(name, {})[path] = tensors[key] = torch.zeros_like(weight.detach()).cpu()
    with _first_error():
        load(tensors, storage_reader=reader, no_dist=not distributed.is_initialized())
    return copies


def _key(name: str, kind: str, path: str) -> str:
    return f"{name}.{kind}.{path}"


def _empty(weight: Tensor, kind: str, saved: "TensorStorageMetadata") -> Tensor:
    dtype = saved.properties.dtype
    if kind == STEP:
        return torch.zeros((), dtype=dtype, device=weight.device)
    if saved.size != weight.shape:  # scales
        return torch.zeros(saved.size, dtype=dtype, device=weight.device)
    return torch.zeros_like(weight.detach(), dtype=dtype)


def _with_dimension(tensor: Tensor) -> Tensor:
    """Give a tensor in the same memory that can be read from safetensors by slices."""
    return tensor if tensor.ndim else tensor.view(1)


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Give each tensor the number of its file, from 1: small ones lie together."""
    numbers, number, room = {}, 1, BYTES_OF_FILE
    for key, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if size > room and room < BYTES_OF_FILE:
            number, room = number + 1, BYTES_OF_FILE
        numbers[key], room = number, room - size
    return numbers


@contextmanager
def _first_error() -> Iterator[None]:
    """Raise what happened in the first process that failed, and not the sum of what happened in all."""
    from torch.distributed.checkpoint.api import CheckpointException

    logging.getLogger(LOGGER).setLevel(logging.WARNING)  # it reports each tensor, at a level that its import has set
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is meant
            yield
    except CheckpointException as failed:
        raise failed.failures[min(failed.failures)][0] from failed
