"""Checks of win rates: by the training reward, at equal length, and by the rewards that nothing was trained on."""

import math
from statistics import NormalDist

from tasks.evaluation.figures import reward_words
from tasks.evaluation.gate.check import Bounds, Check, Evidence, at_least, bounds, not_computed
from tasks.evaluation.gate.result import Verdict
from tasks.evaluation.power import prompts_needed
from tasks.evaluation.schema import Evaluation, WinRateFigure
from tasks.evaluation.scores import HELD_OUT


def win_rate(evidence: Evidence, threshold: float) -> Check:
    """The training reward's win rate must be shown to reach the threshold."""
    name, words = "win_rate", f"Win rate over {evidence.opponent}, lower bound"
    figure = evidence.evaluation.win_rate.vs_opponent
    rate = bounds(figure)
    if rate is None:
        return not_computed(name, words, threshold)
    # A threshold of a half or more claims that the candidate is better. On few prompts the bootstrap alone is too sure
    # of that, and a model is never better than itself: the conclusion, which rests on the sign test too, must say so.
    is_proven = threshold < 0.5 or figure.conclusion == "better"
    details = f"The win rate is {rate}."
    if rate.high < threshold or (rate.low >= threshold and is_proven):
        return at_least(name, words, rate.low, threshold, details=details)
    if rate.low >= threshold:
        details += " The sign test does not confirm it."
    needed = _prompts_needed(evidence.evaluation, rate, threshold)
    if needed:
        details += f" About {needed:,} prompts like these would show it (power 80 %)."
    return at_least(name, words, rate.low, threshold, details=details, verdict="inconclusive")


def _prompts_needed(evaluation: Evaluation, rate: Bounds, threshold: float) -> int | None:
    """How many prompts would show that a win rate exceeds the threshold; None where these speak against it."""
    figure, prompts = evaluation.win_rate.vs_opponent, evaluation.prompts
    if figure.ties is None or rate.value <= threshold:
        return None
    variance = figure.wins / prompts + figure.ties / 4 - rate.value**2  # of 1, a half or 0
    if evaluation.conversations:  # whose turns vary together
        deviations = NormalDist().inv_cdf((1 + evaluation.confidence) / 2)
        variance = prompts * ((rate.high - rate.low) / 2 / deviations) ** 2
    return prompts_needed(rate.value - threshold, math.sqrt(max(variance, 0.0)), evaluation.confidence)


def win_rate_at_equal_length(evidence: Evidence, threshold: float) -> Check:
    """The win rate must reach the threshold without what the length of the answers explains."""
    name, words = "win_rate_at_equal_length", f"Win rate over {evidence.opponent} at equal length, lower bound"
    rate = bounds(evidence.evaluation.length_controlled_win_rate.vs_opponent)
    if rate is None:
        return not_computed(name, words, threshold)
    details = f"The win rate at equal length is {rate}."
    verdict: Verdict | None = "inconclusive" if rate.low < threshold <= rate.high else None
    return at_least(name, words, rate.low, threshold, details=details, verdict=verdict)


def held_out_reward(evidence: Evidence, threshold: float) -> Check | None:
    """The held-out reward model must not show that the candidate is worse; None where there is none."""
    found = evidence.evaluation.held_out
    return (
        _veto("held_out_reward", _over(evidence, reward_words(HELD_OUT)), found.vs_opponent, threshold)
        if found
        else None
    )


def ground_truth(evidence: Evidence, threshold: float) -> list[Check]:
    """No ground-truth reward must show that the candidate is worse."""
    return [
        _veto(f"ground_truth.{name}", _over(evidence, reward_words(name)), found.vs_opponent, threshold)
        for name, found in evidence.evaluation.ground_truth.items()
    ]


def llm_judge(evidence: Evidence, threshold: float) -> Check | None:
    """The LLM judge must not show that the candidate is worse; None where none is set."""
    found = evidence.evaluation.llm_judge
    if found is None:
        return None
    check = _veto("llm_judge", _over(evidence, f"the LLM judge {found.model}"), found.vs_opponent, threshold)
    if not found.without_verdict:
        return check
    return check._replace(sentence=f"{check.sentence} {found.without_verdict} prompts have no verdict.")


def _over(evidence: Evidence, by: str) -> str:
    return f"Win rate over {evidence.opponent} by {by}, upper bound"


def _veto(name: str, words: str, figure: WinRateFigure | None, threshold: float) -> Check:
    """Let a reward that nothing was trained on be in doubt, but not show that the candidate is worse."""
    rate = bounds(figure)
    if rate is None:
        return not_computed(name, words, threshold)
    return at_least(name, words, rate.high, threshold, details=f"The win rate is {rate}.")
