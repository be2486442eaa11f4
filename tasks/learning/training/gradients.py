"""The gradients of a step, summed over the processes in buckets that travel while the backward pass goes on.

Source: Li et al. 2020, "PyTorch Distributed". torch's own DDP averages, wants a last micro-batch in every process, and
cannot take a step again that has run out of memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor, distributed, nn

from tasks.learning import processes
from tasks.learning.sharding import is_sharded

BYTES_OF_BUCKET = 1 << 25


class GradientSums:
    """Replaces the gradients of some weights by their sums over all ranks; a rank without a gradient adds zeros.

        with gradients.travelling():
            ...  # the last backward pass of a step, in a process that has one
        gradients.finish()

    A step that ran out of memory is taken again from its first micro-batch; the buckets that are on their way by then
    hold a whole gradient already, and stay. Shards are left out: FSDP sums them.
    """

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        """Watch those weights that learn."""
        own = [weight for weight in weights if weight.requires_grad and not is_sharded(weight)]
        # The last layers have their gradients first.
        self._buckets = [_Bucket(part) for part in _parts(own[::-1])] if processes.world_size() > 1 else []
        self._num_sent, self._is_last_pass = 0, False
        if not processes.uses_fsdp():  # which sends its own at that time; what it leaves is small
            for bucket in self._buckets:
                for weight in bucket.weights:
                    weight.register_post_accumulate_grad_hook(self._hook(bucket))  # type: ignore[no-untyped-call]

    @contextmanager
    def travelling(self) -> Iterator[None]:
        """Send gradients while the backward pass in the block finds them."""
        for bucket in self._buckets:
            bucket.missing = len(bucket.weights)
        self._is_last_pass = True
        try:
            yield
        finally:
            self._is_last_pass = False

    def finish(self) -> None:
        """Send what is left, and wait for all: the gradients are then the sums."""
        self._send(len(self._buckets))
        for bucket in self._buckets:
            bucket.receive()
        self._num_sent = 0

    def _hook(self, bucket: "_Bucket") -> Callable[[Tensor], None]:
        def found(_: Tensor) -> None:
            if self._is_last_pass:
                bucket.missing -= 1
                ready = self._num_sent
                while ready < len(self._buckets) and not self._buckets[ready].missing:
                    ready += 1
                self._send(ready)

        return found

    def _send(self, until: int) -> None:
        """Send the buckets before a place: all ranks in the same order."""
        for bucket in self._buckets[self._num_sent : until]:
            bucket.send()
            self._num_sent += 1


class _Bucket:
    """Some weights whose gradients travel as one tensor."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights, self.missing = weights, len(weights)
        self._sent: tuple[Tensor, distributed.Work] | None = None

    def send(self) -> None:
        found = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.weights]
        joined = torch.cat([gradient.reshape(-1) for gradient in found])
        del found
        self._give(joined)  # so the gradients lie in memory once
        self._sent = joined, distributed.all_reduce(joined, async_op=True)

    def receive(self) -> None:
        assert self._sent is not None
        joined, work = self._sent
        work.wait()
        self._give(joined)
        self._sent = None

    def _give(self, joined: Tensor) -> None:
        parts = torch.split(joined, [each.numel() for each in self.weights])
        for weight, part in zip(self.weights, parts, strict=True):
            weight.grad = part.view_as(weight)


def _parts(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Split weights into buckets; those of one are of one type, and their order stays."""
    for _, alike in groupby(weights, key=lambda weight: (weight.dtype, weight.device)):
        part, size = list[nn.Parameter](), 0
        for weight in alike:
            if part and size >= BYTES_OF_BUCKET:
                yield part
                part, size = [], 0
            part.append(weight)
            size += weight.numel() * weight.element_size()
        yield part
