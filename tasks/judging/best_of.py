"""Best of n: sample n answers and keep the one the reward model likes most. What training must beat, at no training."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class BestOf(NamedTuple):
    """What the best of n answers to each prompt come to, on average over the prompts."""

    n: int
    kl: float  # nats away from the model that was sampled, at most: log n - (n - 1) / n
    reward: float
    gold: float | None  # of the answers that the reward model chose; None without a known rule


def best_of(rewards: Sequence[Sequence[float]], gold: Sequence[Sequence[float]] | None) -> list[BestOf]:
    """Estimate the best of 1, 2, 4 ... up to N answers from N answers to each of P prompts.

    Every subset of n answers counts alike: the answer of rank i of N by reward is the best of C(i - 1, n - 1) of the
    C(N, n) subsets. Source: Nakano et al. 2021, "WebGPT", appendix I; the KL as in Stiennon et al. 2020, appendix G.3.

    Args:
        rewards: (P, N) by the reward model.
        gold: (P, N) by the known rule, of the same answers.
    """
    scores = np.asarray(rewards, dtype=np.float64)
    order = scores.argsort(axis=1, kind="stable")
    sampled = scores.shape[1]
    found = []
    for n in (2**power for power in range(sampled.bit_length()) if 2**power <= sampled):
        weights = np.array([math.comb(rank, n - 1) for rank in range(sampled)]) / math.comb(sampled, n)

        def expected(values: Sequence[Sequence[float]], weights: np.ndarray = weights) -> float:
            ranked = np.take_along_axis(np.asarray(values, dtype=np.float64), order, axis=1)
            return float((ranked @ weights).mean())

        kl = math.log(n) - (n - 1) / n
        found.append(BestOf(n, kl, expected(rewards), expected(gold) if gold is not None else None))
    return found
