"""The losses of direct preference optimisation.

Each is a sum over pairs divided by a count that the caller gives, as in `maths.losses`.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from tasks.learning.maths.pairs import PairValues, smoothed_log_loss
from tasks.settings.choices import PreferenceLoss


def implicit_rewards(
    policy: PairValues, reference: PairValues, lengths: PairValues, loss: PreferenceLoss, beta: float
) -> PairValues:
    """The reward a loss implies: beta log(policy / reference), Rafailov et al. 2023, equation 5 without its constant.

    ipo, sigmoid_norm and simpo take the mean over the completion's tokens in place of the sum; simpo has no reference.

    Args:
        policy: log-probabilities summed over the completions' tokens; carry the gradient.
        reference: the same of the model where training started.
        lengths: the completions' tokens.
        loss: what the policy is trained with.
        beta: strength of the pull towards the reference.
    """
    rewards = []
    for logps, reference_logps, tokens in zip(policy, reference, lengths, strict=True):
        # SimPO needs no second model: the mean over tokens takes the place of the reference.
        log_ratios = logps if loss == "simpo" else logps - reference_logps
        # Sums grow with length, so losses on sums prefer what changes long answers; means do not.
        rewards.append(beta * (log_ratios / tokens if loss in ("ipo", "sigmoid_norm", "simpo") else log_ratios))
    return PairValues(*rewards)


def preference_loss(
    margins: Tensor,
    weights: Tensor | None,
    total_weight: float,
    loss: PreferenceLoss,
    *,
    beta: float,
    label_smoothing: float,
    simpo_gamma: float,
) -> Tensor:
    """The loss of direct preference optimisation, as these pairs' part of the weighted mean over a step's pairs.

    With m the margin of the implicit rewards, e the label smoothing and b beta:

    - sigmoid: -(1 - e) log sigmoid(m) - e log sigmoid(-m), Rafailov et al. 2023, equation 7; e of Mitchell 2023
    - robust: [-(1 - e) log sigmoid(m) + e log sigmoid(-m)] / (1 - 2e), Chowdhury et al. 2024, equation 12
    - hinge: max(0, 1 - m), Zhao et al. 2023 ("SLiC-HF")
    - ipo: (m / b - 1 / (2b))^2 on means over tokens, Azar et al. 2023, equation 17
    - sigmoid_norm: -log sigmoid(m) on means over tokens
    - simpo: -log sigmoid(m - gamma) on means over tokens without reference, Meng et al. 2024, equation 6

    Args:
        margins: (N,), from `implicit_rewards` with the same loss and beta.
        weights: (N,); None: each counts 1.
        total_weight: what the pairs of the whole step weigh: their number, where each counts 1.
        loss: which of the above.
        beta: b; only ipo needs it beyond the margins.
        label_smoothing: e, the chance that a label is wrong; 0 for the losses without it.
        simpo_gamma: SimPO's target margin.
    """
    match loss:
        case "sigmoid":
            losses = smoothed_log_loss(margins, label_smoothing)
        case "robust":
            # Divided by 1 - 2e the loss has the expectation of the loss on clean labels; it may be negative.
            as_labelled, flipped = -logsigmoid(margins), -logsigmoid(-margins)
            losses = ((1 - label_smoothing) * as_labelled - label_smoothing * flipped) / (1 - 2 * label_smoothing)
        case "hinge":
            # No gradient once a pair is ordered by a margin of 1: easy pairs stop pulling at the policy.
            losses = (1 - margins).relu()
        case "ipo":
            # A finite target: the log loss of a pair that always has one label would drive its margin to infinity.
            losses = (margins / beta - 1 / (2 * beta)).square()
        case "sigmoid_norm":
            losses = -logsigmoid(margins)
        case "simpo":
            losses = -logsigmoid(margins - simpo_gamma)
    return (losses if weights is None else weights * losses).sum() / total_weight
