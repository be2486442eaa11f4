"""Preference pairs: their values, and the loss of the reward model.

A loss is a sum over pairs divided by a count that the caller gives, as in `losses`.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid


class PairValues(NamedTuple):
    """One number for each completion of N pairs."""

    chosen: Tensor  # (N,)
    rejected: Tensor  # (N,)

    @property
    def margins(self) -> Tensor:
        """By how much the chosen completion is ahead, (N,)."""
        return self.chosen - self.rejected


def reward_loss(
    scores: PairValues,
    total_weight: float,
    *,
    margin: float | Tensor = 0.0,
    centering: float = 0.0,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """Bradley-Terry loss of a reward model, as these pairs' part of the weighted mean over a step's pairs.

    -(1 - e) log sigmoid(d) - e log sigmoid(-d) + c (r_chosen + r_rejected)^2, with d = r_chosen - r_rejected - m.
    Sources: Ouyang et al. 2022, equation 1; the margin m of Touvron et al. 2023 ("Llama 2"), equation 2; the
    centering c of Eisenstein et al. 2023; the smoothing e of Mitchell 2023 ("A note on DPO with noisy preferences").

    Args:
        scores: of the chosen and the rejected completions.
        total_weight: what the pairs of the whole step weigh: their number, where each counts 1.
        margin: m, by how much the chosen score must win before the loss falls below log 2; of all, or (N,).
        centering: c, weight of the penalty on the pair's summed score.
        label_smoothing: e, the chance that a label is wrong.
        weights: (N,); None: each counts 1. Pairs of a ranked list share the weight of one (Ouyang et al. 2022).
    """
    differences = scores.margins - margin
    # Bradley-Terry fixes differences of scores alone; the penalty fixes where their 0 lies.
    losses = smoothed_log_loss(differences, label_smoothing) + centering * (scores.chosen + scores.rejected).square()
    return (losses if weights is None else weights * losses).sum() / total_weight


def smoothed_log_loss(differences: Tensor, label_smoothing: float) -> Tensor:
    """Negative log-likelihood of the labels under Bradley-Terry, for labels that are wrong with some probability.

    -(1 - e) log sigmoid(d) - e log sigmoid(-d), Mitchell 2023 ("A note on DPO with noisy preferences").

    Args:
        differences: d, (N,), by how much the chosen completions are ahead.
        label_smoothing: e, the probability that a label is wrong.

    Returns:
        (N,).
    """
    # Not log(sigmoid(d)): in fp32 the sigmoid of a large negative difference is 0, and its logarithm infinite.
    return -(1 - label_smoothing) * logsigmoid(differences) - label_smoothing * logsigmoid(-differences)
