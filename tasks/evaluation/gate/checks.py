"""The gate's checks, its decision, and its reasons. A figure that could not be computed does not pass."""

from collections.abc import Sequence

from tasks.common.rounding import number
from tasks.evaluation.figures import reward_words
from tasks.evaluation.gate.answers import LIMIT, eos_rate, kl, length_ratio, perplexity, refusals, repetition
from tasks.evaluation.gate.categories import category_regressions
from tasks.evaluation.gate.check import Check, Evidence, bounds
from tasks.evaluation.gate.over_optimisation import over_optimisation
from tasks.evaluation.gate.result import GateDecision
from tasks.evaluation.gate.reward_models import accuracy, baseline_warnings, beats_baselines, cut_answers_warnings
from tasks.evaluation.gate.win_rates import ground_truth, held_out_reward, llm_judge, win_rate, win_rate_at_equal_length
from tasks.evaluation.scores import HELD_OUT
from tasks.settings.params import Gate


def run_checks(evidence: Evidence, thresholds: Gate) -> list[Check]:
    """Run every check that applies, in the order in which people read them."""
    checks = [
        win_rate(evidence, thresholds.min_win_rate),
        win_rate_at_equal_length(evidence, thresholds.min_win_rate),
        held_out_reward(evidence, thresholds.min_held_out_win_rate),
        *ground_truth(evidence, thresholds.min_held_out_win_rate),
        llm_judge(evidence, thresholds.min_held_out_win_rate),
        over_optimisation(evidence, thresholds.max_over_optimised_points),
        category_regressions(evidence, thresholds.max_category_regressions),
        kl(evidence, thresholds.max_kl),
        accuracy("reward_accuracy", "the reward model", evidence.reward, thresholds.min_reward_accuracy),
        accuracy(
            "held_out_accuracy", reward_words(HELD_OUT), evidence.held_out_reward, thresholds.min_held_out_accuracy
        ),
        beats_baselines(evidence.reward, is_required=thresholds.reward_beats_baselines),
        length_ratio(evidence, thresholds.min_length_ratio, thresholds.max_length_ratio),
        eos_rate(evidence, thresholds.min_eos_rate),
        repetition(evidence, thresholds.max_repetition),
        refusals(evidence, thresholds.max_refusals_gained),
        perplexity(evidence, thresholds.max_perplexity_ratio),
    ]
    return [check for check in checks if check]


def left_out(evidence: Evidence) -> list[str]:
    """Say which checks do not apply because a reward model or evaluation points are missing, and why."""
    found = []
    if evidence.reward is None:
        found.append("reward_accuracy is left out: rewards.training names no reward model, so none was trained.")
    if evidence.evaluation.held_out is None:
        found.append("held_out_reward and held_out_accuracy are left out: no held-out reward model was trained.")
        if not evidence.evaluation.ground_truth:
            found.append("over_optimisation is left out: no reward is independent of the training reward.")
            return found
    if not evidence.evaluation.over_optimisation:
        found.append("over_optimisation was not measured: the training had no evaluation points.")
    return found


def decide(checks: Sequence[Check]) -> GateDecision:
    """Promote where all pass, reject where one fails; inconclusive where only more prompts could tell."""
    verdicts = {check.verdict for check in checks}
    if not checks or "failed" in verdicts:
        return "reject"
    return "inconclusive" if "inconclusive" in verdicts else "promote"


def reasons(checks: Sequence[Check]) -> list[str]:
    """Give the lines that carry the decision: of the checks that did not pass, or of all where all passed."""
    return [check.sentence for check in checks if check.verdict != "passed"] or [check.sentence for check in checks]


def warnings(evidence: Evidence, thresholds: Gate) -> list[str]:
    """Warn of signs of reward hacking, of weak reward models, and of truncated answers. Warnings decide nothing."""
    evaluation, found = evidence.evaluation, [*baseline_warnings(evidence), *cut_answers_warnings(evidence)]
    compared = (("SFT", evaluation.difference.vs_sft), ("the opponent", evaluation.difference.vs_opponent))
    for rival, difference in compared:
        reward = bounds(difference.reward)
        for name, figure in difference.ground_truth.items():
            truth = bounds(figure)
            if reward and truth and reward.low > 0 > truth.high:
                found.append(
                    f"Reward hacking: over {rival} the training reward rose by {reward} while {reward_words(name)} "
                    f"changed by {truth}."
                )
    ended = [evaluation.candidate.eos_rate, evaluation.opponent.eos_rate]
    if all(rate is not None and rate < thresholds.min_eos_rate for rate in ended):
        found.append(
            f"Of the answers of candidate and opponent, {' and '.join(map(number, ended))} end by EOS; {LIMIT} cuts "
            "the others, and the rewards saw only their beginnings. Raise it."
        )
    return found
