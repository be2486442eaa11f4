"""What several reward models say of an answer, as one score."""

from torch import Tensor


def ensemble_scores(scores: Tensor, penalty: float) -> Tensor:
    """Mean of the members' scores, less a penalty times their standard deviation: where they differ, none may know.

    With two members and a penalty of 1 it is the lower score. Source: Coste et al. 2023, "Reward Model Ensembles Help
    Mitigate Overoptimization", uncertainty-weighted optimisation, whose penalty is on the variance.

    Args:
        scores: (K, N) of K members for N answers.
        penalty: weight of the deviation.

    Returns:
        (N,).
    """
    return scores.mean(dim=0) - penalty * scores.std(dim=0, correction=0)
