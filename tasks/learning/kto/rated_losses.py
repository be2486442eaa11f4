"""The losses of rated answers.

Each is a sum over answers divided by a count that the caller gives, as in `maths.losses`.
"""

import torch
from torch import Tensor

from tasks.settings.choices import RatedLoss


def reference_point(log_ratio_sum: Tensor, answer_count: int) -> Tensor:
    """The KL divergence from the reference, estimated on answers to other prompts and never below 0.

    z_0 = max(0, 1/m sum_i log(policy(y_j | x_i) / reference(y_j | x_i))) with j another row than i, Ethayarajh et al.
    2024, section 4.1. It is a constant of the loss: no gradient goes through it.

    Args:
        log_ratio_sum: scalar, summed over the answers of the whole step: one of a micro-batch would make the loss
            depend on how the step is split.
        answer_count: m, answers of the whole step.
    """
    return (log_ratio_sum.detach() / answer_count).clamp(min=0.0)


def rated_loss(
    log_ratios: Tensor,
    is_desirable: Tensor,
    point: Tensor,
    answer_count: int,
    loss: RatedLoss,
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Tensor:
    """The loss of rated answers, as these answers' part of the mean over `answer_count` answers.

    With r the log-ratio of an answer, z the reference point, b beta, w the weight of the answer's label:

    - kto: w (1 - sigmoid(b (r - z))) for a good answer, w (1 - sigmoid(b (z - r))) for a bad one: w - v of Ethayarajh
      et al. 2024, section 4.1
    - apo_zero: w (1 - sigmoid(b r)) for a good answer, w sigmoid(b r) for a bad one: APO-zero of D'Oosterlinck et al.
      2024, each half of a pair on its own

    Args:
        log_ratios: r, (N,): log(policy / reference), summed over the completions' tokens; carries the gradient.
        is_desirable: (N,) bool.
        point: z, scalar; apo_zero does without it.
        answer_count: answers of the whole step.
        loss: which of the above.
        beta: b, strength of the pull towards the reference.
        desirable_weight: w of good answers.
        undesirable_weight: w of bad answers.
    """
    match loss:
        case "kto":
            gains = log_ratios - point
        case "apo_zero":
            gains = log_ratios
    signs = torch.where(is_desirable, 1.0, -1.0)
    weights = torch.where(is_desirable, desirable_weight, undesirable_weight)
    # sigmoid(-x) rather than 1 - sigmoid(x), which has no digits left where the sigmoid is near 1.
    return (weights * torch.sigmoid(-beta * signs * gains)).sum() / answer_count
