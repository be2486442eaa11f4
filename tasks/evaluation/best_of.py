"""Best of n: sample n answers and keep the one with the highest training reward. A baseline that needs no training."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.compare import outcomes
from tasks.evaluation.scores import TRAINING, ScoresByName


class BestOf(NamedTuple):
    """The best of n answers to each of P prompts, by each reward."""

    n: int
    kl: float  # upper bound of the KL to the model that was sampled, nats: log n - (n - 1) / n
    scores: ScoresByName  # P expected scores
    wins: ScoresByName  # P probabilities to beat another answer of the sampled model, a tie being half a win


def best_of(scores: Mapping[str, Sequence[Sequence[float]]], others: ScoresByName) -> list[BestOf]:
    """Estimate the best of 1, 2, 4 ... up to N answers from N answers to each of P prompts.

    Every subset of n answers counts alike: the answer of rank i of N by reward is the best of C(i - 1, n - 1) of the
    C(N, n) subsets. Source: Nakano et al. 2021, "WebGPT", appendix I; the KL as in Stiennon et al. 2020, appendix G.3.

    Args:
        scores: (P, N) by each reward; the training reward chooses.
        others: P scores, by each reward, of another answer of the same model to each prompt.
    """
    order = np.asarray(scores[TRAINING], dtype=np.float64).argsort(axis=1, kind="stable")
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


def _expected(ranked: Mapping[str, NDArray[np.float64]], weights: NDArray[np.float64]) -> ScoresByName:
    return {name: (values @ weights).tolist() for name, values in ranked.items()}
