"""The loss of supervised fine-tuning.

A loss is a sum over tokens or pairs divided by a count that the caller gives: the count of the whole step. So the
micro-batches of a step add up to its loss and its gradient, however it is split.
"""

from torch import Tensor


def sft_loss(log_probs: Tensor, completion_mask: Tensor, token_count: int) -> Tensor:
    """Negative log-likelihood of the completion's tokens, as their part of the mean over `token_count` tokens.

    Args:
        log_probs: (B, L).
        completion_mask: (B, L) bool; what lies outside may be NaN and gets no gradient.
        token_count: completion tokens of the whole step.
    """
    # Filled, not multiplied: NaN in the padding times 0 is NaN. Divided by the count of the whole step and not of
    # this part: else short micro-batches would weigh more.
    return -log_probs.masked_fill(~completion_mask, 0.0).sum() / token_count
