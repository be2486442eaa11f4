"""Best of n: sample n answers and keep the one the reward model likes most. What training must beat, at no training."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.compare import outcomes
from tasks.evaluation.over_optimisation import PROXY, Scores


class BestOf(NamedTuple):
    """What the best of n answers to each of P prompts comes to, by each who judged it."""

    n: int
    kl: float  # nats away from the model that was sampled, at most: log n - (n - 1) / n
    scores: Scores  # P expected scores
    wins: Scores  # P chances to beat another answer of the model that was sampled, a tie being half a win


def best_of(scores: Mapping[str, Sequence[Sequence[float]]], others: Scores) -> list[BestOf]:
    """Estimate the best of 1, 2, 4 ... up to N answers from N answers to each of P prompts.

    Every subset of n answers counts alike: the answer of rank i of N by reward is the best of C(i - 1, n - 1) of the
    C(N, n) subsets. Source: Nakano et al. 2021, "WebGPT", appendix I; the KL as in Stiennon et al. 2020, appendix G.3.

    Args:
        scores: (P, N) by each who judged; the reward model's choose.
        others: P scores by each of another answer of the same model to each prompt.
    """
    order = np.asarray(scores[PROXY], dtype=np.float64).argsort(axis=1, kind="stable")
    sampled = order.shape[1]
    ranked = {
        name: np.take_along_axis(np.asarray(values, np.float64), order, axis=1) for name, values in scores.items()
    }
    won = {name: outcomes(values, np.asarray(others[name])[:, None]) for name, values in ranked.items()}
    found = []
    for n in (2**power for power in range(sampled.bit_length()) if 2**power <= sampled):
        weights = np.array([math.comb(rank, n - 1) for rank in range(sampled)]) / math.comb(sampled, n)
        found.append(BestOf(n, math.log(n) - (n - 1) / n, _expected(ranked, weights), _expected(won, weights)))
    return found


def _expected(ranked: Mapping[str, NDArray[np.float64]], weights: NDArray[np.float64]) -> Scores:
    return {name: (values @ weights).tolist() for name, values in ranked.items()}
