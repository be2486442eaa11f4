"""The most memory that tensors hold at once while something runs, for tensors without data too."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, inside its block, the bytes of all storages that torch's operations make, until they are freed.

    What a kernel needs for itself while it runs is not seen.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Begin at zero; the `known` tensors, and views of them, are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._living: dict[int, weakref.ref[Any]] = {}
        self._now = 0
        self.peaks = [0]  # the most in each phase so far
        for tensor in known:
            self._add(tensor, 0)

    def begin_phase(self) -> None:
        """Let another phase begin, with what is there."""
        self.peaks.append(self._now)

    def _add(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._living:
            return

        def freed(_: object) -> None:
            del self._living[key]
            self._now -= size

        self._living[key] = weakref.ref(storage, freed)
        self._now += size
        self.peaks[-1] = max(self.peaks[-1], self._now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Run an operation, and count what it gives."""
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor, tensor.untyped_storage().nbytes())
        return found
