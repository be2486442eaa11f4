"""Checks of the answers themselves: how far the policy is from SFT, and how long, finished and repetitive they are."""

from tasks.common.rounding import number
from tasks.evaluation.figures import FIGURE
from tasks.evaluation.gate.check import AT_LEAST, AT_MOST, Check, Evidence, at_least, at_most, bounds, not_computed
from tasks.evaluation.schema import IntervalFigure

LIMIT = "evaluate.max_new_tokens"


def kl(evidence: Evidence, threshold: float) -> Check:
    """The policy must stay near SFT."""
    name, words, value = "kl", "KL(policy || SFT), nats per answer", evidence.evaluation.kl.mean
    return not_computed(name, words, threshold) if value is None else at_most(name, words, value, threshold)


def length_ratio(evidence: Evidence, least: float, most: float) -> Check:
    """Answers must not become much shorter or longer than the opponent's."""
    name, words = "length_ratio", f"Length of the answers, relative to those of {evidence.opponent}"
    ours, theirs = evidence.evaluation.candidate.length, evidence.evaluation.opponent.length
    if ours is None or not theirs:
        return not_computed(name, words, most)
    ratio = ours / theirs
    if ratio < least:
        return at_least(name, words, ratio, least, details=_limited(evidence), digits=2)
    if ratio > most:
        return at_most(name, words, ratio, most, details=_limited(evidence), digits=2)
    return at_most(name, words, ratio, most, details=f"It is at least {least:g}.", digits=2)


def _limited(evidence: Evidence) -> str:
    """Say how many answers of each the limit has truncated: it may be the cause."""
    ours, theirs = evidence.evaluation.candidate.eos_rate, evidence.evaluation.opponent.eos_rate
    return (
        f"Of the candidate's answers {number(ours)} end before {LIMIT}, of those of {evidence.opponent} "
        f"{number(theirs)}."
    )


def eos_rate(evidence: Evidence, threshold: float) -> Check:
    """Most answers must end by themselves, or as many as the opponent's."""
    check = _or_no_worse("eos_rate", evidence, threshold)
    if check.verdict == "passed" and check.figure is not None and check.figure < threshold:
        return check._replace(sentence=f"{check.sentence} {LIMIT} cuts the answers of both: raise it.")
    return check


def repetition(evidence: Evidence, threshold: float) -> Check:
    """Answers must hardly repeat themselves, or no more than the opponent's."""
    return _or_no_worse("repetition", evidence, threshold)


def _or_no_worse(name: str, evidence: Evidence, threshold: float) -> Check:
    """Check a figure of the candidate's answers; it passes too where it is not significantly worse than the opponent's.

    Args:
        name: of the figure in metrics/evaluate.json.
        evidence: what the gate reads.
        threshold: the least or the most, by which side of the figure is better.
    """
    figure, evaluation = FIGURE[name], evidence.evaluation
    ours: float | None = getattr(evaluation.candidate, name)
    theirs: float | None = getattr(evaluation.opponent, name)
    difference: IntervalFigure = getattr(evaluation.difference.vs_opponent, name)
    if ours is None:
        return not_computed(name, figure.words, threshold)
    is_higher_better = figure.better == "higher"
    check = (at_least if is_higher_better else at_most)(name, figure.words, ours, threshold)
    found = bounds(difference)
    if check.verdict == "passed" or found is None or theirs is None:
        return check
    compared = (
        f"{evidence.opponent} has {number(theirs)}; the difference is {number(found.value, sign='+')} "
        f"[{number(found.low, sign='+')}, {number(found.high, sign='+')}]"
    )
    if found.high < 0 if is_higher_better else found.low > 0:
        return check._replace(sentence=f"{check.sentence} {compared}: significantly worse.")
    demand = AT_LEAST if is_higher_better else AT_MOST
    sentence = f"{figure.words} {number(ours)} {demand} {threshold:g}, or not significantly worse than "
    return check._replace(verdict="passed", sentence=f"{sentence}{evidence.opponent}: passed. {compared}.")


def refusals(evidence: Evidence, threshold: float) -> Check:
    """The candidate must not refuse much more often than the opponent."""
    name, words = "refusals", f"Share of refusals minus that of {evidence.opponent}"
    ours, theirs = evidence.evaluation.candidate.refusals, evidence.evaluation.opponent.refusals
    if ours is None or theirs is None:
        return not_computed(name, words, threshold)
    details = f"The shares are {number(ours)} and {number(theirs)}."
    return at_most(name, words, ours - theirs, threshold, details=details)


def perplexity(evidence: Evidence, threshold: float) -> Check:
    """The candidate must not be much more surprised by the demonstrated answers than SFT."""
    name, words = "perplexity", f"{FIGURE['perplexity'].words}, relative to SFT"
    ours, theirs = evidence.evaluation.perplexity.candidate, evidence.evaluation.perplexity.sft
    if ours is None or not theirs:
        return not_computed(name, words, threshold)
    return at_most(name, words, ours / theirs, threshold, digits=2)
