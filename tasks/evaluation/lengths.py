"""The win rate at equal length of the answers: reward models prefer long answers, and policies learn that."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from tasks.evaluation.compare import Interval, Resampling, outcomes, resampled_counts

# Standard deviations of Gaussian priors on the two log-odds. Without them prompts that are all won have no finite fit;
# the first hardly shrinks (a win rate of .99 is at 4.6), the second lets length explain what it can.
PRIORS = np.array([5.0, 5.0])
NEWTON_STEPS = 25


def length_controlled_win_rate(
    ours: Sequence[float],
    theirs: Sequence[float],
    our_lengths: Sequence[float],
    their_lengths: Sequence[float],
    resampling: Resampling,
) -> Interval:
    """Win rate with what length explains of it taken out, and its paired bootstrap interval.

    Fits P(win) = sigmoid(a + b tanh(d / s)) to the outcomes, d the difference of the lengths and s its root mean
    square, and gives sigmoid(a). Source: Dubois et al. 2024, "Length-Controlled AlpacaEval", equation 2, for two models
    on one set of prompts, without its term for each prompt's difficulty.

    Args:
        ours: n scores of the model to assess, one a prompt.
        theirs: n scores of the other on the same prompts.
        our_lengths: n lengths of the first model's answers.
        their_lengths: n lengths of the other's.
        resampling: count of resamples, confidence and seed.
    """
    won = outcomes(ours, theirs)
    longer = np.asarray(our_lengths, dtype=np.float64) - np.asarray(their_lengths, dtype=np.float64)
    scale = float(np.sqrt((longer**2).mean())) or 1.0
    features = np.stack([np.ones_like(won), np.tanh(longer / scale)], axis=1)
    value = _equal_length_rates(features, won, np.ones((1, len(won))))[0]
    rates = np.concatenate(
        [_equal_length_rates(features, won, counts) for counts in resampled_counts(len(won), resampling)]
    )
    tail = (1 - resampling.confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def _equal_length_rates(
    features: NDArray[np.float64], won: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Win rates at equal length, (R,), by Newton's method on R weighted logistic regressions at once.

    Args:
        features: (n, 2).
        won: (n,), 0, a half or 1.
        counts: (R, n), how often each prompt counts.
    """
    precision = np.diag(PRIORS**-2)
    weights = np.zeros((len(counts), 2))
    for _ in range(NEWTON_STEPS):
        chances = expit(weights @ features.T)
        gradient = (counts * (won - chances)) @ features - weights @ precision
        curvature = np.einsum("rn,ni,nj->rij", counts * chances * (1 - chances), features, features) + precision
        weights = weights + np.linalg.solve(curvature, gradient[..., None])[..., 0]
    rates: NDArray[np.float64] = expit(weights[:, 0])
    return rates
