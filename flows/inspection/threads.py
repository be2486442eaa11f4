"""Whether another number of CPU threads would be faster, by two short measurements of each."""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

SECONDS = 0.07  # of each measurement, after a first product that is not measured
CLEARLY_FASTER = 1.3
SAMPLED, LEARNED = 64, 1024  # rows of a decoding step, and of a micro-batch
VOCABULARY = 4096
LARGEST_PRODUCT = 4e9  # operations: more would take too long


class Rates(NamedTuple):
    """Products a second with a number of threads."""

    sampling: float
    training: float

    def over(self, other: "Rates") -> float:
        """How much faster than another, as the geometric mean of both."""
        return math.sqrt(self.sampling / other.sampling * self.training / other.training)


def measured(counts: Sequence[int], width: int) -> dict[int, Rates]:
    """Measure numbers of threads; the number that torch has is as before afterwards.

    Args:
        counts: which.
        width: of the model's hidden states.
    """
    before = torch.get_num_threads()
    try:
        return {count: Rates(*(_rate(count, rows, width) for rows in (SAMPLED, LEARNED))) for count in counts}
    finally:
        torch.set_num_threads(before)


def better(now: int, found: dict[int, Rates]) -> tuple[int, str] | None:
    """Give the number of threads that is clearly faster than the one now, if one is, and say how much."""
    best = max(found, key=lambda count: found[count].over(found[now]))
    if found[best].over(found[now]) <= CLEARLY_FASTER:
        return None
    sampling, training = (one / other for one, other in zip(found[best], found[now], strict=True))
    shown = f"{best} in place of {now}: sampling would be {sampling:.1f} and training {training:.1f} times as fast"
    return best, shown


def _rate(count: int, rows: int, width: int) -> float:
    """Measure a layer's product and a softmax: many small operations for few rows, a large one for many."""
    torch.set_num_threads(count)
    rows = max(SAMPLED, min(rows, int(LARGEST_PRODUCT / (8 * width**2))))
    states, weight, scores = torch.ones(rows, width), torch.ones(4 * width, width), torch.ones(SAMPLED, VOCABULARY)
    done, started = 0, 0.0
    while True:
        torch.nn.functional.linear(states, weight)
        torch.softmax(scores, dim=-1)
        if done == 0:
            started = time.monotonic()
        elif (taken := time.monotonic() - started) >= SECONDS:
            return done / taken
        done += 1
