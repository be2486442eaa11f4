"""Out of memory: a step is tried again with fewer tokens in a pass, which changes the result by rounding only."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from tasks.common.errors import InputError, is_out_of_memory
from tasks.learning import processes
from tasks.learning.processes import Pass

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Budget:
    """The tokens of one forward and backward pass: those of the settings, halved whenever memory does not suffice."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def halve(self, passes: Sequence[Pass]) -> None:
        """Make the next attempt a smaller one than that of the `passes` that failed.

        Raises:
            InputError: every pass held one item only, or other processes wait for this one within the pass.
        """
        if processes.are_sharding():
            raise InputError(
                "out of memory on one of several processes that share weights: lower runtime.max_tokens_per_micro_batch"
            )
        if max(len(each.items) for each in passes) == 1:
            cure = "lower validate.max_tokens, train adapters (lora.rank), or take a smaller base model"
            raise InputError(f"out of memory with a single row in a pass: {cure}")
        self.tokens //= 2
        logger.warning(
            "out of memory: going on with %d tokens in a micro-batch (runtime.max_tokens_per_micro_batch)", self.tokens
        )

    def spend(self, items: Sequence[int], lengths: Sequence[int], work: Callable[[Sequence[Pass]], Result]) -> Result:
        """Do this process's share of some work in passes, again from its beginning where memory does not suffice.

        Args:
            items: what all processes work on.
            lengths: tokens of each item there is.
            work: called with the passes; what it leaves behind when it fails must not matter.
        """
        while True:
            passes = processes.passes(items, lengths, self.tokens)
            try:
                return work(passes)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.halve(passes)
