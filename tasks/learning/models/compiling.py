"""Layers compiled by torch, as an option: one program for rows of any length, attention over packed rows left out."""

import importlib.util
import os
import shutil

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tasks.common.errors import InputError
from tasks.learning import processes
from tasks.learning.models.attention import PACKED, attend
from tasks.learning.models.forward import compute_device

BACKEND = "inductor"


def compile_layers(model: PreTrainedModel) -> None:
    """Have the layers compiled in place, at their first pass; weights keep their names.

    Attention over packed rows stays as it is: its loop over the sequences of a row would be compiled for each row anew.

    Raises:
        InputError: they cannot be compiled here.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if reason := _obstacle(compute_device(model), has_layers=bool(layers)):
        raise InputError(f"runtime.compile: {reason}: set it to false in params.yaml")
    AttentionInterface.register(PACKED, torch.compiler.disable(attend))  # type: ignore[no-untyped-call]
    for layer in layers:
        layer.compile(dynamic=True, backend=BACKEND)


def _obstacle(device: torch.device, *, has_layers: bool) -> str | None:
    """Say why layers cannot be compiled."""
    if not has_layers:
        return "this family's layers cannot be separated from the rest of the model"
    if processes.uses_fsdp():
        return "layers whose weights lie in shards are not compiled"
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "torch needs a C++ compiler, and there is neither g++ nor what CXX names"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch needs triton, which is not installed"
    return None
