"""Out of memory: a step is tried again with fewer tokens in a pass, which changes the result by rounding only."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from tasks.errors import InputError, is_out_of_memory
from tasks.learning.batches import micro_batches

Result = TypeVar("Result")
Groups = Sequence[Sequence[int]]  # the items of each forward and backward pass
logger = logging.getLogger(__name__)


class Budget:
    """The tokens of one forward and backward pass: those of the settings, halved whenever memory does not suffice."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def halve(self, groups: Groups) -> None:
        """Make the next attempt a smaller one; `groups` are the items of each pass of the one that failed.

        Raises:
            InputError: every pass held one item only.
        """
        if max(len(group) for group in groups) == 1:
            cure = "lower validate.max_tokens, train adapters (lora.rank), or take a smaller base model"
            raise InputError(f"out of memory with a single row in a pass: {cure}")
        self.tokens //= 2
        logger.warning("out of memory: going on with %d tokens in a pass (runtime.tokens_per_pass)", self.tokens)

    def spend(self, items: Sequence[int], lengths: Sequence[int], work: Callable[[Groups], Result]) -> Result:
        """Do some work in micro-batches, again from its beginning where memory does not suffice.

        Args:
            items: what is worked on.
            lengths: tokens of each item there is.
            work: called with the items of each pass; what it leaves behind when it fails must not matter.
        """
        while True:
            groups = list(micro_batches(items, lengths, self.tokens))
            try:
                return work(groups)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self.halve(groups)
