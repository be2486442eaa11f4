"""Out of memory: a step is tried again with smaller micro-batches, which changes the result by rounding only."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from tasks.common.errors import InputError, is_out_of_memory
from tasks.learning import processes
from tasks.learning.processes import MicroBatch

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class MicroBatchLimit:
    """Most tokens in a micro-batch: at first that of the settings, halved whenever memory does not suffice."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def halve(self, failed: Sequence[MicroBatch]) -> None:
        """Lower the limit for the next attempt; `failed` are the micro-batches of the one that ran out of memory.

        Raises:
            InputError: each held one item only, or FSDP stopped inside a pass, where other processes wait.
        """
        if processes.uses_fsdp():
            raise InputError(
                "out of memory in a process that shards or offloads weights: lower runtime.max_tokens_per_micro_batch"
            )
        if max(len(each.items) for each in failed) == 1:
            cure = "lower validate.max_tokens, train adapters (lora.rank, lora.quantize), or take a smaller base model"
            raise InputError(f"out of memory with a single row in a micro-batch: {cure}")
        self.tokens //= 2
        logger.warning(
            "out of memory: continuing with %d tokens in a micro-batch (runtime.max_tokens_per_micro_batch)",
            self.tokens,
        )

    def split(self, items: Sequence[int], lengths: Sequence[int]) -> list[MicroBatch]:
        """Split this rank's share of some items, of which `lengths` gives the tokens, into micro-batches."""
        return processes.micro_batches_of_rank(items, lengths, self.tokens)

    def run(
        self, items: Sequence[int], lengths: Sequence[int], work: Callable[[Sequence[MicroBatch]], Result]
    ) -> Result:
        """Do this rank's share of some work, again from its beginning where memory does not suffice.

        Args:
            items: of all processes.
            lengths: tokens of each item there is.
            work: called with the micro-batches; a failed call must leave nothing behind that matters.
        """
        while True:
            micro_batches = self.split(items, lengths)
            try:
                return work(micro_batches)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.halve(micro_batches)
