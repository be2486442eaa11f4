"""A scalar head fitted on frozen features: a convex problem, solved to its end before anything else is trained.

On few pairs this is most of what a reward model can learn: fine-tuning from a random head spends its steps on finding
what a regularised logistic regression has at once.
"""

import logging
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.model_selection import GroupKFold
from torch import Tensor
from transformers import PreTrainedModel

from tasks.common.errors import InputError
from tasks.common.progress import track
from tasks.data.encoding.tokens import EncodedPair
from tasks.learning import processes
from tasks.learning.batches import collate_pairs, evenly_spaced
from tasks.learning.maths.pairs import PairValues
from tasks.learning.models.forward import compute_device
from tasks.learning.models.loading import score_head
from tasks.learning.models.outputs import pooled_states
from tasks.learning.reward_model.loss import PairTerms, loss_of
from tasks.settings.params import Reward

LARGEST_FIT = 20_000  # pairs: their features lie in memory
FOLDS = 5
# Weights of the penalty among which cross-validation chooses, the strongest first; 1/2 l2 |w|^2 for features of
# deviation 1.
PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
GRADIENT_TOLERANCE = 1e-7
MOST_ITERATIONS = 10_000
logger = logging.getLogger(__name__)


class Fit(NamedTuple):
    """A fitted head and how it was found."""

    weights: Tensor  # (d,) fp64, of features as they are
    figures: dict[str, Any]


class _Features(NamedTuple):
    """Features of N pairs, divided by their deviation."""

    chosen: Tensor  # (N, d) fp64
    rejected: Tensor  # (N, d) fp64
    terms: PairTerms

    def take(self, places: NDArray[np.int64]) -> "_Features":
        index = torch.from_numpy(places)
        return _Features(self.chosen[index], self.rejected[index], self.terms.take(places.tolist()))


class HeadRows(NamedTuple):
    """What a head is fitted on: N pairs."""

    features: PairValues  # (N, d) each
    terms: PairTerms
    conversations: list[str]

    def resampled(self, seed: int) -> "HeadRows":
        """Draw as many conversations as there are, with replacement, each with all its pairs (bootstrap)."""
        by_conversation: dict[str, list[int]] = {}
        for place, conversation in enumerate(self.conversations):
            by_conversation.setdefault(conversation, []).append(place)
        drawn = random.Random(seed).choices(list(by_conversation.values()), k=len(by_conversation))
        places = [place for of_one in drawn for place in of_one]
        features = PairValues(*(each[places] for each in self.features))
        return HeadRows(features, self.terms.take(places), [self.conversations[place] for place in places])


def head_rows(
    model: torch.nn.Module,
    pairs: Sequence[EncodedPair],
    conversations: Sequence[str],
    terms: PairTerms,
    *,
    tokens: int,
    title: str,
) -> HeadRows:
    """Compute what a head is fitted on; of more than `LARGEST_FIT` pairs so many are taken, at even distances."""
    places = evenly_spaced(len(pairs), LARGEST_FIT)
    features = answer_features(model, [pairs[place] for place in places], tokens, title)
    return HeadRows(features, terms.take(places), [conversations[place] for place in places])


def start_head(model: PreTrainedModel, rows: HeadRows, settings: Reward, seed: int, stage: str) -> dict[str, Any]:
    """Give the head the fitted weights; returns what metrics say of the fit.

    Raises:
        InputError: the penalty cannot be chosen.
    """
    try:
        fit = fit_head(rows.features, rows.terms, rows.conversations, settings, seed)
    except InputError as error:
        raise InputError(f"{stage}: {error}") from None
    with torch.no_grad():
        score_head(model).get_parameter("weight").copy_(fit.weights[None])
    return {"head_fit": fit.figures}


@torch.no_grad()
def answer_features(model: torch.nn.Module, pairs: Sequence[EncodedPair], tokens: int, title: str) -> PairValues:
    """What the head reads of both answers of every pair, (N, d) fp32 each on the CPU; every rank computes its share.

    Args:
        model: with a scalar head, which is not used; not sharded.
        pairs: N of them; the result has their order.
        tokens: at most, in a micro-batch.
        title: names the progress bar.
    """
    lengths = [2 * pair.length for pair in pairs]
    groups = [each.items for each in processes.groups_of_rank(lengths, tokens) if each.weight]
    found: list[tuple[int, Tensor, Tensor]] = []
    for group in track(groups, title, "batch"):
        states = pooled_states(model, collate_pairs([pairs[place] for place in group], compute_device(model)))
        found += zip(group, *states.float().cpu().chunk(2), strict=True)
    _, chosen, rejected = zip(*sorted(processes.gathered(found), key=lambda each: each[0]), strict=True)
    return PairValues(torch.stack(chosen), torch.stack(rejected))


def fit_head(features: PairValues, terms: PairTerms, conversations: Sequence[str], settings: Reward, seed: int) -> Fit:
    """Minimise the loss of the reward model over the head alone, plus an L2 penalty, by L-BFGS in fp64.

    The penalty is on weights of features that are divided by their deviation; there is no intercept, which differences
    of scores do not have. Without `head_l2` the penalty has the least mean loss in cross-validation, in which the
    pairs of a conversation lie in one fold.

    Args:
        features: of N pairs, (N, d) each.
        terms: of the pairs in the loss, on the CPU.
        conversations: of each pair.
        settings: of the loss, and `head_l2`.
        seed: of the folds.

    Raises:
        InputError: the penalty is to be chosen, and all pairs are of one conversation.
    """
    both = torch.cat([features.chosen, features.rejected]).double()
    deviations = both.std(dim=0, correction=0)
    deviations[deviations == 0] = 1.0
    chosen, rejected = (each.double() / deviations for each in features)
    scaled = _Features(chosen, rejected, terms)
    losses = {} if settings.head_l2 is not None else _cross_validated(scaled, conversations, settings, seed)
    l2 = settings.head_l2 if settings.head_l2 is not None else min(losses, key=losses.__getitem__)
    weights, gradient = _solved(scaled, settings, l2)
    figures: dict[str, Any] = {"l2": l2, "pairs": len(scaled.chosen), "loss": _loss(weights, scaled, settings).item()}
    figures |= {"cross_validated_loss": {f"{each:g}": loss for each, loss in losses.items()}} if losses else {}
    return Fit(weights / deviations, {**figures, "largest_gradient": gradient})


def _cross_validated(
    features: _Features, conversations: Sequence[str], settings: Reward, seed: int
) -> dict[float, float]:
    """Mean loss on pairs that were not fitted, by penalty."""
    folds = min(FOLDS, len(set(conversations)))
    if folds < 2:
        cure = "give pairs of several prompts, or a number as head_l2 in params.yaml"
        raise InputError(f"head_l2 cannot be chosen by cross-validation: all training pairs share one prompt: {cure}")
    sums = dict.fromkeys(PENALTIES, 0.0)
    everything = np.arange(len(conversations))
    splits = GroupKFold(folds, shuffle=True, random_state=seed).split(everything, groups=list(conversations))
    for fitted, held_out in splits:
        part, other, weights = features.take(fitted), features.take(held_out), None
        for l2 in PENALTIES:
            weights, _ = _solved(part, settings, l2, weights)
            sums[l2] += _loss(weights, other, settings).item() * float(other.terms.weights.sum())
    return {l2: total / float(features.terms.weights.sum()) for l2, total in sums.items()}


def _solved(features: _Features, settings: Reward, l2: float, start: Tensor | None = None) -> tuple[Tensor, float]:
    """Minimise loss and penalty from some weights (d,) on; gives the weights and the largest entry of the gradient."""

    def value_and_gradient(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = torch.tensor(values, requires_grad=True)
        loss = _loss(weights, features, settings) + l2 / 2 * weights.square().sum()
        [gradient] = torch.autograd.grad(loss, weights)
        return loss.item(), gradient.numpy()

    first = np.zeros(features.chosen.shape[1]) if start is None else start.numpy()
    options = {"gtol": GRADIENT_TOLERANCE, "ftol": 0.0, "maxiter": MOST_ITERATIONS, "maxfun": 2 * MOST_ITERATIONS}
    found = minimize(value_and_gradient, first, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x), float(np.abs(found.jac).max())


def _loss(weights: Tensor, features: _Features, settings: Reward) -> Tensor:
    scores = PairValues(features.chosen @ weights, features.rejected @ weights)
    return loss_of(scores, float(features.terms.weights.sum()), settings, features.terms)
