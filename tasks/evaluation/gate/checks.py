"""The gate's named checks: figures beside thresholds. What cannot be computed does not pass."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

from tasks.common.rounding import number
from tasks.evaluation.opponent import Opponent
from tasks.evaluation.power import prompts_needed
from tasks.settings.params import Gate

Verdict = Literal["passed", "failed", "inconclusive"]
Decision = Literal["promote", "reject", "inconclusive"]
HARDLY_FEWER = 0.95  # of the pairs: their intervals differ by less than a fortieth
NAMED = 8  # categories in a sentence; the report has them all
LIMIT = "evaluate.max_new_tokens"


class Check(NamedTuple):
    """One figure beside its threshold."""

    name: str
    figure: float | None  # None: missing or not finite
    threshold: float
    verdict: Verdict
    sentence: str


class Rate(NamedTuple):
    """A win rate, its interval, and what the evaluation says of it."""

    value: float
    low: float
    high: float
    verdict: str  # better, worse or inconclusive

    def __str__(self) -> str:
        """Write it down."""
        return _with_interval(self.value, self.low, self.high)


class Since(NamedTuple):
    """How the last answers of a training fare against those of an earlier mark."""

    step: float
    proxy: Rate  # by the reward model
    held_out: Rate  # by the held-out reward model

    @property
    def has_parted(self) -> bool:
        """Whether they are surely better by the one and surely worse by the other."""
        return (self.proxy.verdict, self.held_out.verdict) == ("better", "worse")


class Category(NamedTuple):
    """How the candidate fares against the opponent in one category of prompts."""

    name: str
    rate: Rate  # by the reward model, at a confidence that holds for all categories together
    has_enough: bool  # prompts for any verdict


class Evidence(NamedTuple):
    """What the gate reads: figures that other stages wrote, and whom the candidate must beat."""

    evaluation: Mapping[str, Any]  # metrics/evaluate.json
    reward: Mapping[str, Any]  # metrics/reward.json
    judge: Mapping[str, Any]  # metrics/held_out_reward.json
    opponent: Opponent


def run_checks(evidence: Evidence, thresholds: Gate) -> list[Check]:
    """Run every check, in the order in which people read them."""
    return [
        _win_rate(evidence, thresholds.min_win_rate),
        _win_rate_at_equal_length(evidence, thresholds.min_win_rate),
        _held_out_judge(evidence, thresholds.min_held_out_win_rate),
        *([_known_rule(evidence, thresholds.min_held_out_win_rate)] if "ground_truth" in evidence.evaluation else []),
        *([_llm_judge(evidence, thresholds.min_held_out_win_rate)] if "llm_judge" in evidence.evaluation else []),
        _over_optimisation(evidence, thresholds.max_over_optimised_points),
        _category_regressions(evidence, thresholds.max_category_regressions),
        _kl(evidence, thresholds.max_kl),
        _accuracy(
            "reward_accuracy", "reward model's held-out", evidence.reward, "reward", thresholds.min_reward_accuracy
        ),
        _accuracy(
            "held_out_accuracy", "held-out judge's", evidence.judge, "held_out", thresholds.min_held_out_accuracy
        ),
        _length_ratio(evidence, thresholds.min_length_ratio, thresholds.max_length_ratio),
        _eos_rate(evidence, thresholds.min_eos_rate),
        _repetition(evidence, thresholds.max_repetition),
        _refusals(evidence, thresholds.max_refusals_gained),
        _perplexity(evidence, thresholds.max_perplexity_ratio),
    ]


def decide(checks: Sequence[Check]) -> Decision:
    """Promote where all pass, reject where one fails; inconclusive where only more prompts could tell."""
    verdicts = {check.verdict for check in checks}
    if not checks or "failed" in verdicts:
        return "reject"
    return "inconclusive" if "inconclusive" in verdicts else "promote"


def reasons(checks: Sequence[Check]) -> list[str]:
    """The sentences that carry the decision: of what did not pass, or of everything where all passed."""
    return [check.sentence for check in checks if check.verdict != "passed"] or [check.sentence for check in checks]


def figure(content: Mapping[str, Any], *path: str) -> float | None:
    """Look up a nested number; None where it is missing, no number, or not finite."""
    value = lookup(content, *path)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def lookup(content: Mapping[str, Any], *path: str) -> Any:  # noqa: ANN401 (whatever JSON can hold)
    """Look up a nested value; None where a step of the path is missing."""
    value: Any = content
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def warnings(evaluation: Mapping[str, Any], thresholds: Gate) -> list[str]:
    """Signs that the reward is being gamed, or that little was seen. They do not decide: the gate's thresholds do."""
    found = []
    for rival, name in (("vs_sft", "SFT"), ("vs_opponent", "the opponent")):
        reward = figure(evaluation, "difference", rival, "reward", "low")
        gold = figure(evaluation, "difference", rival, "ground_truth", "high")
        if reward is not None and gold is not None and reward > 0 > gold:
            found.append(
                f"Against {name} the reward rose while the known rule's score fell: the reward is being gamed."
            )
    ended = [figure(evaluation, model, "eos_rate") for model in ("candidate", "opponent")]
    if all(rate is not None and rate < thresholds.min_eos_rate for rate in ended):
        found.append(
            f"Of the answers of candidate and opponent {' and '.join(map(number, ended))} end by themselves: {LIMIT} "
            "cuts the others, whose beginnings were judged. Raise it; what does not end even so has not learned to."
        )
    return found


def _win_rate(evidence: Evidence, threshold: float) -> Check:
    versus = ("win_rate", "vs_opponent")
    low, high = (figure(evidence.evaluation, *versus, end) for end in ("low", "high"))
    value = figure(evidence.evaluation, *versus, "value")
    if low is None or high is None or value is None:
        return _missing("win_rate", threshold, "The win rate over the opponent", "metrics/evaluate.json")
    # A threshold of a half or more claims that the candidate is better. On few prompts the bootstrap is too sure of
    # that, and a model is never better than itself: the verdict, which the exact sign test shares in, must say so.
    proven = threshold < 0.5 or lookup(evidence.evaluation, *versus, "verdict") == "better"
    said = f"The win rate over {evidence.opponent} is {_with_interval(value, low, high)}"
    if low >= threshold and proven:
        return Check("win_rate", low, threshold, "passed", f"{said}: its lower bound reaches {threshold:g}.")
    if high >= threshold:
        needed = _prompts_needed(evidence.evaluation, versus, threshold)
        advice = f" About {needed:,.0f} prompts like these would (power 80 %)." if needed else ""
        sentence = f"{said}: these prompts do not settle whether it exceeds {threshold:g}.{advice}"
        return Check("win_rate", low, threshold, "inconclusive", sentence)
    return Check("win_rate", low, threshold, "failed", f"{said}: all of the interval is below {threshold:g}.")


def _prompts_needed(evaluation: Mapping[str, Any], versus: tuple[str, str], threshold: float) -> int | None:
    """How many prompts would show that a win rate exceeds the threshold; None where these speak against it."""
    value, ties, wins = (figure(evaluation, *versus, key) for key in ("value", "ties", "wins"))
    prompts, confidence = figure(evaluation, "prompts"), figure(evaluation, "confidence")
    if value is None or ties is None or wins is None or not prompts or confidence is None or value <= threshold:
        return None
    variance = wins / prompts + ties / 4 - value**2  # of 1, a half or 0
    low, high = (figure(evaluation, *versus, end) for end in ("low", "high"))
    if figure(evaluation, "conversations") and low is not None and high is not None:  # whose turns vary together
        variance = prompts * ((high - low) / 2 / NormalDist().inv_cdf((1 + confidence) / 2)) ** 2
    return prompts_needed(value - threshold, math.sqrt(max(variance, 0.0)), confidence)


def _win_rate_at_equal_length(evidence: Evidence, threshold: float) -> Check:
    name, versus = "win_rate_at_equal_length", ("length_controlled_win_rate", "vs_opponent")
    value, low, high = (figure(evidence.evaluation, *versus, key) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return _missing(name, threshold, "The win rate at equal length", "metrics/evaluate.json")
    said = f"With what length explains taken out, the win rate is {_with_interval(value, low, high)}"
    if low >= threshold:
        return Check(name, low, threshold, "passed", f"{said}: its lower bound reaches {threshold:g}.")
    if high >= threshold:
        sentence = f"{said}: it is not shown that the answers are more than longer or shorter."
        return Check(name, low, threshold, "inconclusive", sentence)
    return Check(name, low, threshold, "failed", f"{said}: all of the interval is below {threshold:g}.")


def _held_out_judge(evidence: Evidence, threshold: float) -> Check:
    rate = _rate(evidence.evaluation, "held_out", "vs_opponent")
    return _veto("held_out_reward", "the held-out judge", threshold, rate)


def _known_rule(evidence: Evidence, threshold: float) -> Check:
    return _veto("known_rule", "the known rule", threshold, _rate(evidence.evaluation, "ground_truth", "vs_opponent"))


def _llm_judge(evidence: Evidence, threshold: float) -> Check:
    silent = figure(evidence.evaluation, "llm_judge", "without_verdict")
    if silent is None:
        return _missing("llm_judge", threshold, "The win rate by the LLM judge", "metrics/evaluate.json")
    aside = f" ({silent:.0f} prompts without a verdict aside)" if silent else ""
    who, rate = (
        lookup(evidence.evaluation, "llm_judge", "model"),
        _rate(evidence.evaluation, "llm_judge", "vs_opponent"),
    )
    return _veto("llm_judge", str(who), threshold, rate, aside)


def _veto(name: str, who: str, threshold: float, rate: Rate | None, aside: str = "") -> Check:
    """Let one who is not learned from be in doubt, but not say that the candidate is worse."""
    if rate is None:
        return _missing(name, threshold, f"The win rate by {who}", "metrics/evaluate.json")
    said = f"By {who} the win rate is {rate}{aside}"
    if rate.high >= threshold:
        return Check(name, rate.high, threshold, "passed", f"{said}: it does not contradict the reward model.")
    sentence = f"{said}, all of it below {threshold:g}: what pleases the reward model does not please it."
    return Check(name, rate.high, threshold, "failed", sentence)


def _over_optimisation(evidence: Evidence, threshold: int) -> Check:
    name, marks = "over_optimisation", lookup(evidence.evaluation, "frontier")
    found = [_since(mark) for mark in marks[:-1]] if isinstance(marks, list) else []
    since = [each for each in found if each]
    if not since or len(since) < len(found):
        return _missing(name, threshold, "What became of the answers along the training", "metrics/evaluate.json")
    parted = [each for each in since if each.has_parted]
    step, proxy, judge = min(parted or since, key=lambda each: each.held_out.high)
    said = (
        f"Over those of step {step:g} the last answers win {proxy} by the reward model, {judge} by the held-out judge"
    )
    if len(parted) > threshold:
        sentence = f"{said}: training went on past the point where the reward model could be trusted."
        return Check(name, len(parted), threshold, "failed", sentence)
    sentence = (
        f"{said}: against {len(parted) or 'none'} of {len(since)} marks have they surely gained by the one and lost by "
        "the other."
    )
    return Check(name, len(parted), threshold, "passed", sentence)


def _since(mark: Mapping[str, Any]) -> Since | None:
    step = figure(mark, "step")
    proxy, judge = (_rate(mark, "last_over_this", name) for name in ("reward", "held_out"))
    return Since(step, proxy, judge) if step is not None and proxy and judge else None


def _rate(content: Mapping[str, Any], *path: str) -> Rate | None:
    value, low, high = (figure(content, *path, key) for key in ("value", "low", "high"))
    verdict = lookup(content, *path, "verdict")
    if value is None or low is None or high is None or verdict not in ("better", "worse", "inconclusive"):
        return None
    return Rate(value, low, high, verdict)


def _category_regressions(evidence: Evidence, threshold: int) -> Check:
    name, categories = "category_regressions", lookup(evidence.evaluation, "categories")
    found = [_category(categories, each) for each in categories] if isinstance(categories, Mapping) else [None]
    told = [each for each in found if each]
    if len(told) < len(found):
        return _missing(name, threshold, "The win rate in each category of prompts", "metrics/evaluate.json")
    if not told:
        return Check(name, 0, threshold, "passed", "The data name no category of prompts.")
    worse = [each for each in told if each.rate.verdict == "worse"]
    few = [each.name for each in told if not each.has_enough]
    said = (
        f"In {len(worse)} of {len(told)} categories of prompts the candidate is shown to be worse than "
        f"{evidence.opponent}{''.join(f'; {each.name}: {each.rate}' for each in worse)}."
    )
    if few:
        more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
        said += f" No verdict is possible on {len(few)} with too few prompts: {', '.join(few[:NAMED])}{more}."
    return Check(name, len(worse), threshold, "passed" if len(worse) <= threshold else "failed", said)


def _category(categories: Mapping[str, Any], name: str) -> Category | None:
    rate, has_enough = _rate(categories, name, "win_rate", "vs_opponent"), lookup(categories, name, "enough_prompts")
    return Category(name, rate, has_enough) if rate and isinstance(has_enough, bool) else None


def _kl(evidence: Evidence, threshold: float) -> Check:
    kl = figure(evidence.evaluation, "kl", "mean")
    if kl is None:
        return _missing("kl", threshold, "KL(policy || SFT)", "metrics/evaluate.json")
    return _at_most("kl", kl, threshold, f"The policy is {number(kl)} nats an answer away from SFT")


def _accuracy(name: str, whose: str, figures: Mapping[str, Any], stage: str, threshold: float) -> Check:
    low = figure(figures, "accuracy", "low")
    if low is None:
        return _missing(name, threshold, f"The {whose} accuracy", f"metrics/{stage}.json")
    shared = shared_pairs(figures, "accuracy")
    said = f"The lower bound of the {whose} accuracy is {number(low)}{f' ({shared})' if shared else ''}"
    return _at_least(name, low, threshold, said)


def shared_pairs(figures: Mapping[str, Any], *path: str) -> str | None:
    """Say why the interval of an accuracy is wider than its number of pairs has it; None where it hardly is."""
    pairs, independent = (figure(figures, *path, key) for key in ("pairs", "effective_pairs"))
    if not pairs or not independent or independent > HARDLY_FEWER * pairs:
        return None
    return f"{number(pairs, 0)} pairs, which share prompts and tell as much as {number(independent, 0)} that do not"


def _length_ratio(evidence: Evidence, least: float, most: float) -> Check:
    ours, theirs = (figure(evidence.evaluation, model, "length") for model in ("candidate", "opponent"))
    if ours is None or not theirs:
        return _missing("length_ratio", most, "The length of the answers", "metrics/evaluate.json")
    said = f"Answers have {number(ours / theirs, 2)} times the length of those of {evidence.opponent}"
    if ours / theirs < least:
        return _with_cuts(_at_least("length_ratio", ours / theirs, least, said), evidence)
    return _with_cuts(_at_most("length_ratio", ours / theirs, most, said), evidence)


def _with_cuts(check: Check, evidence: Evidence) -> Check:
    """Where lengths are too far apart, say how many answers of each the limit has cut: it may be the cause."""
    ours, theirs = (figure(evidence.evaluation, model, "eos_rate") for model in ("candidate", "opponent"))
    if check.verdict == "passed" or ours is None or theirs is None:
        return check
    shares = f"{number(ours)} of the candidate's answers and {number(theirs)} of those of {evidence.opponent}"
    return check._replace(sentence=f"{check.sentence} Before {LIMIT} end {shares}.")


def _eos_rate(evidence: Evidence, threshold: float) -> Check:
    rate = figure(evidence.evaluation, "candidate", "eos_rate")
    if rate is None:
        return _missing("eos_rate", threshold, "The share of answers that end by themselves", "metrics/evaluate.json")
    check = _at_least("eos_rate", rate, threshold, f"The share of answers that end by themselves is {number(rate)}")
    return _excused(check, evidence, f"the limit, {LIMIT}, cuts the answers of both alike, so raise it")


def _repetition(evidence: Evidence, threshold: float) -> Check:
    share = figure(evidence.evaluation, "candidate", "repetition")
    if share is None:
        return _missing("repetition", threshold, "The repetition within answers", "metrics/evaluate.json")
    check = _at_most("repetition", share, threshold, f"The share of repeated 4-grams in an answer is {number(share)}")
    return _excused(check, evidence, "the candidate has it from what it began as")


def _excused(check: Check, evidence: Evidence, cause: str) -> Check:
    """Let a candidate pass that misses a threshold, where it is not shown to be worse than the opponent by that figure.

    Args:
        check: named as its figure in metrics/evaluate.json.
        evidence: what the gate reads.
        cause: what to say where the candidate is not to blame.
    """
    path, theirs = ("difference", "vs_opponent", check.name), figure(evidence.evaluation, "opponent", check.name)
    value, low, high = (figure(evidence.evaluation, *path, key) for key in ("value", "low", "high"))
    if check.verdict == "passed" or value is None or low is None or high is None or theirs is None:
        return check
    ends = f"{number(value, sign='+')} (interval {number(low, sign='+')} to {number(high, sign='+')})"
    said = (
        f"{check.sentence.removesuffix('.')}; that of {evidence.opponent} is {number(theirs)}, a difference of {ends}"
    )
    asks_for_more = check.figure is not None and check.figure < check.threshold
    if high < 0 if asks_for_more else low > 0:
        return check._replace(sentence=f"{said}: the candidate is worse.")
    return check._replace(verdict="passed", sentence=f"{said}: {cause}.")


def _refusals(evidence: Evidence, threshold: float) -> Check:
    ours, theirs = (figure(evidence.evaluation, model, "refusals") for model in ("candidate", "opponent"))
    if ours is None or theirs is None:
        return _missing("refusals", threshold, "The share of refusals", "metrics/evaluate.json")
    against = f"{number(ours)}, against {number(theirs)} of {evidence.opponent}, a gain of {number(ours - theirs)}"
    return _at_most("refusals", ours - theirs, threshold, f"The share of answers that begin as refusals is {against}")


def _perplexity(evidence: Evidence, threshold: float) -> Check:
    ours, theirs = (figure(evidence.evaluation, "perplexity", model) for model in ("candidate", "sft"))
    if ours is None or not theirs:
        return _missing("perplexity", threshold, "The perplexity of the demonstrated answers", "metrics/evaluate.json")
    said = f"The perplexity of the demonstrated answers is {number(ours / theirs, 2)} times that under SFT"
    return _at_most("perplexity", ours / theirs, threshold, said)


def _at_least(name: str, value: float, threshold: float, said: str) -> Check:
    if value >= threshold:
        return Check(name, value, threshold, "passed", f"{said}: at least {threshold:g}, as demanded.")
    return Check(name, value, threshold, "failed", f"{said}: less than the {threshold:g} demanded.")


def _at_most(name: str, value: float, threshold: float, said: str) -> Check:
    if value <= threshold:
        return Check(name, value, threshold, "passed", f"{said}: at most {threshold:g}, as demanded.")
    return Check(name, value, threshold, "failed", f"{said}: more than the {threshold:g} allowed.")


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{number(value)} (interval {number(low)} to {number(high)})"


def _missing(name: str, threshold: float, what: str, file: str) -> Check:
    sentence = f"{what} could not be computed ({file} has no such finite figure), so it does not pass."
    return Check(name, None, threshold, "failed", sentence)
