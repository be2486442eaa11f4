import base64
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from tasks.data.checks.validation import FileFigures, SplitCounts, TokenFigures, Validation
from tasks.evaluation.gate.checks import decide, left_out, reasons, run_checks
from tasks.evaluation.gate.report import Background, render
from tasks.evaluation.gate.result import CheckFigures, GateResult, OpponentName
from tasks.evaluation.opponent import Opponent
from tasks.evaluation.reward_check_record import RewardCheck
from tasks.evaluation.schema import Response
from tests.evaluation.evaluations import (
    GOOD,
    NO_REWARD_CHECK,
    REWARD_MODEL,
    SFT,
    THRESHOLDS,
    baseline,
    by_reward,
    changed,
    difference,
    evaluation,
    evidence,
    figures,
    interval,
    rate,
    reward_model,
)

CHAMPION = Opponent("champion", 3, "ab.dir")
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\""
NO_ROWS = FileFigures(
    rows=0,
    valid=0,
    quarantined=0,
    splits=SplitCounts(train=0, validation=0, test=0),
    findings={},
    tokens=TokenFigures(mean=None, p50=None, p95=None, max=None),
)
PAIRS = FileFigures(
    rows=50,
    valid=47,
    quarantined=3,
    splits=SplitCounts(train=37, validation=5, test=5),
    findings={"length": {"train": 2, "test": 1}},
    tokens=TokenFigures(mean=66.39, p50=60, p95=110, max=116),
    longer_chosen=0.5,
)
NONE = dict.fromkeys(("demonstrations", "ratings", "prompts", "ai_preferences"), NO_ROWS)
VALIDATION = Validation(preferences=PAIRS, warnings=[], **NONE)
CURVES = {
    "sft": [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0}],
    "reward": [{"step": 1.0, "loss": 0.7}, {"step": 2.0, "loss": 0.5}],
    "ppo": [{"step": 1.0, "reward": 0.0, "kl": 0.0}, {"step": 2.0, "reward": 1.0, "kl": 2.0}],
}


def answered(text, reward, **more):
    plain = {"answer": text, "reward": reward, "length": 5, "ended": True, "repetition": 0.0}
    return plain | {"training": {}, "ground_truth": {}} | more


def response(name, ours, theirs, answer="fine", **more):
    return {
        "id": name,
        "category": None,
        "prompt": [{"role": "user", "content": f"prompt {name}"}],
        "references": [f"reference {name}"],
        "candidate": answered(answer, ours, **more),
        "sft": answered("sft", 0.0),
        "opponent": answered(f"answer of {name}", theirs),
    }


def page(
    content=GOOD,
    responses=(),
    opponent=SFT,
    reward=REWARD_MODEL,
    warnings=(),
    validation=VALIDATION,
    check=NO_REWARD_CHECK,
):
    known = evidence(content, reward, opponent=opponent)
    checks = run_checks(known, THRESHOLDS)
    result = GateResult(
        decision=decide(checks),
        opponent=OpponentName(**opponent._asdict()),
        checks=[CheckFigures(**check._asdict()) for check in checks],
        reasons=reasons(checks),
        warnings=list(warnings),
        left_out=left_out(known),
    )
    rows = [Response.model_validate(row) for row in responses]
    background = Background(figures(reward), validation, CURVES, RewardCheck.model_validate(check))
    return render(result, opponent, evaluation(content), rows, background)


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


class WellFormed(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = ("meta", "img", "path", "circle", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.addresses = [], set(), []

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.slow
def test_the_decision_comes_first_with_its_reasons():
    text = text_of(page())
    assert text.index("✔ Promote") < text.index("lower bound 0.600 &gt;= 0.5") < text.index("What this does not show")
    assert "The candidate compared with SFT on 120 prompts" in text


@pytest.mark.parametrize(("low", "word"), [(0.6, "✔ Promote"), (0.4, "? Inconclusive")])
def test_the_decision_reads_without_colour(low, word):
    assert word in page(changed(GOOD, "win_rate", "vs_opponent", "low", to=low))


@pytest.mark.slow
def test_what_intervals_are_over_is_reported_where_prompts_are_turns():
    assert "interval over the 40 conversations that the prompts are turns of, conf" in text_of(
        page(GOOD | {"conversations": 40})
    )
    assert "paired bootstrap interval, confidence" in text_of(page())
    shared = REWARD_MODEL["accuracy"] | {"pairs": 646, "effective_pairs": 244.3}
    assert "Pairs, counted as independent ones 244" in text_of(page(reward=reward_model(accuracy=shared)))


def test_a_rejection_says_which_check_failed():
    text = text_of(page(changed(GOOD, "kl", "mean", to=50.0)))
    assert "✘ Reject" in text
    assert "kl 50.000 10 ✘ failed KL(policy || SFT), nats per answer 50.000 &lt;= 10: failed." in text


def test_figures_stand_side_by_side_with_the_interval_of_their_difference():
    text = text_of(page(changed(GOOD, "candidate", "bleu", to=None)))
    assert "Training reward higher 1.500 0.250 0.500 +1.000 (+0.750 to +1.250)" in text
    assert "Held-out reward model higher 0.750 0.250 0.500 +0.000 (-0.100 to +0.100)" in text
    assert "Length, tokens 12.0 10.0 10.0 +0.0 (-0.1 to +0.1)" in text
    assert "BLEU higher — 20.00 20.00 —" in text
    assert "Perplexity of the demonstrated answers lower 3.000 2.000 — —" in text
    assert "rouge: F1; meteor: exact+stem." in text


@pytest.mark.slow
def test_a_champion_is_compared_beside_sft():
    text = text_of(page(opponent=CHAMPION))
    assert "SFT, by the training reward 0.750 (0.700 to 0.800) 0.100 0.0010 better" in text
    assert "champion version 3, by the training reward 0.700 (0.600 to 0.800) 0.200 0.2500 better" in text


def test_hostile_output_of_a_model_stays_text():
    row = response(HOSTILE, 2.0, 1.0, answer=HOSTILE) | {"references": [HOSTILE]}
    hostile = {"methods": GOOD["methods"] | {"meteor": HOSTILE}, "categories": {HOSTILE: GOOD["categories"]["law"]}}
    sources = reward_model(accuracy_by_source={HOSTILE: REWARD_MODEL["accuracy"]})
    html = page(GOOD | hostile, [row], reward=sources, warnings=[HOSTILE])
    parser = WellFormed()
    parser.feed(html)
    assert "script" not in parser.seen
    assert all(address.startswith("data:image/svg+xml;base64,") for address in parser.addresses)
    assert "&lt;script&gt;alert" in html
    assert parser.open == []


def test_the_page_loads_nothing():
    html = page(responses=[response("a", 2, 1)], opponent=CHAMPION)
    parser = WellFormed()
    parser.feed(html)
    pictures = [address.removeprefix("data:image/svg+xml;base64,") for address in parser.addresses]
    assert len(pictures) == len(["learning curves", "over-optimisation", "length"])
    for picture in pictures:
        drawn = base64.b64decode(picture).decode()
        assert "<script" not in drawn
        assert set(re.findall(r'href="(.)', drawn)) <= {"#"}  # parts of itself alone
    assert "http" not in html.replace('http-equiv="Content-Security-Policy"', "")
    assert "default-src 'none'" in html


def test_samples_are_those_in_which_the_models_differ_most():
    rows = [response(f"n{number:02}.", ours=float(number), theirs=6.0) for number in range(13)]
    text = text_of(page(responses=rows))
    shown = [int(number) for number in re.findall(r"answer of n(\d+)\.", text)]
    # gaps -6 .. 6: the five best for the candidate, best first, then the five worst, worst first
    assert shown == [12, 11, 10, 9, 8, 0, 1, 2, 3, 4]


@pytest.mark.slow
def test_the_reward_model_is_described():
    reward = reward_model(
        accuracy_by_confidence={"0.5-0.6": {"value": 0.5, "pairs": 4}, "0.6-0.7": {"value": None, "pairs": 0}},
        margin={"mean": 0.5, "std": 1.0, "largest": 2.0, "histogram": [1, 0, 2, 1]},
    )
    html = page(reward=reward)
    assert "Accuracy 0.750 (0.700 to 0.800)" in text_of(html)
    assert "Expected calibration error 0.050" in text_of(html)
    assert "Reliability curve of the reward model" in html
    assert "Histogram of the reward model's margins" in unescape(html)
    assert "Reliability curve" not in page()
    assert "Histogram" not in page()


def test_without_a_reward_model_the_page_says_so():
    text = text_of(page(reward=None))
    assert "No reward model was trained: rewards.training names none." in text
    assert "reward_accuracy is left out: rewards.training names no reward model, so none was trained." in text


def test_without_evaluation_points_the_page_says_so():
    text = text_of(page(GOOD | {"over_optimisation": []}))
    assert "over_optimisation was not measured: the training had no evaluation points." in text


@pytest.mark.slow
def test_the_reward_models_accuracy_is_shown_by_source_and_annotator():
    sources = {
        "data/a.jsonl": {"value": 0.75, "low": 0.625, "high": 0.875, "pairs": 40},
        "org/name": {"value": 0.5, "low": 0.25, "high": 0.75, "pairs": 12},
    }
    text = text_of(page(reward=reward_model(accuracy_by_source=sources)))
    assert "Source Pairs Accuracy data/a.jsonl 40 0.750 (0.625 to 0.875) org/name 12 0.500 (0.250 to 0.750)" in text
    assert "Annotator" not in text
    text = text_of(page(reward=reward_model(accuracy_by_annotator={"ada": sources["org/name"]})))
    assert "Annotator Pairs Accuracy ada 12 0.500 (0.250 to 0.750)" in text
    assert "Source Pairs" not in text


@pytest.mark.slow
def test_the_reward_model_stands_beside_baselines_without_a_model():
    text = text_of(page(reward=reward_model(baselines={"tf_idf": baseline(0.6, -0.02)})))
    assert (
        "Baseline: TF-IDF with logistic regression; the model minus it 0.600 (0.500 to 0.700); "
        "+0.080 (-0.020 to +0.180)" in text
    )


@pytest.mark.slow
def test_lengths_are_drawn_where_there_are_answers():
    assert "Difference of reward against difference of length" in page(responses=[response("a", 2, 1)])
    assert "Difference of reward against difference of length" not in page()


def test_the_data_are_counted():
    assert "preferences 50 47 3 37 5 5 66.4 116 length 3" in text_of(page())


def test_the_evaluation_points_stand_beside_best_of_n():
    html = page()
    text = text_of(html)
    assert "Win rate over SFT against KL, along training and of best of n" in html
    even, won, tied = (
        f"{a} ({b} to {c})"
        for a, b, c in (("0.500", "0.500", "0.500"), ("0.600", "0.560", "0.640"), ("0.500", "0.400", "0.600"))
    )
    assert f"step 0 0.000 {even} {even} {tied} {tied}" in text
    assert f"step 40 1.500 {won} {won} {tied} 0.400 (0.400 to 0.600)" in text
    assert f"step 80 3.000 {won} {won} — —" in text
    assert f"best of 2 0.193 {won} {even} — —" in text
    assert "KL Win rate over SFT Win rate of the final policy over this " in text
    assert text.count("Training reward Held-out reward model") == 2


def test_without_evaluation_points_best_of_n_is_left():
    html = page(GOOD | {"over_optimisation": []})
    assert "Win rate over SFT against KL" not in html
    assert "best of 2 0.193" in text_of(html)


def test_categories_stand_below_one_another_where_there_are_some():
    text = text_of(page())
    tied = "0.500 (0.400 to 0.600)"
    assert f"law 30 1.500 1.000 +0.500 (+0.250 to +0.750) {tied} inconclusive" in text
    assert f"tax 3 1.500 1.000 +0.500 (+0.250 to +0.750) {tied} too few prompts" in text
    assert "By category" not in page(GOOD | {"categories": {}})


def test_an_llm_judge_stands_beside_the_rewards_with_its_bias():
    counts = {"prompts": 120, "same_answers": 20, "without_verdict": 5, "asked_again": 8, "agreement": 0.75}
    won = rate(0.6, 0.5, 0.7, ties=0.25, sign_test=0.04, conclusion="better")
    judge = {"model": "judge-7b", "first_preferred": 0.625, "vs_opponent": won, **counts}
    text = text_of(page(GOOD | {"llm_judge": judge}))
    assert "SFT, by the LLM judge judge-7b 0.600 (0.500 to 0.700) 0.250 0.0400 better" in text
    assert "Of 120 prompts, 20 have the same answer twice and were not compared, and 5 have no verdict; 8 repl" in text
    assert "agree on a share of 0.750. The first answer was preferred in a share of 0.625" in text
    assert "in both orders" not in page()


def test_either_method_shows_its_curve():
    curves = {"dpo": [{"step": 1.0, "loss": 0.7, "reward": 0.0}]}
    name = OpponentName(name="sft", version=None, policy=None)
    result = GateResult(decision="reject", opponent=name, checks=[], reasons=[], warnings=[], left_out=[])
    background = Background(figures(REWARD_MODEL), VALIDATION, curves, RewardCheck.model_validate(NO_REWARD_CHECK))
    html = render(result, SFT, evaluation(), [], background)
    assert "DPO: reward margin" in html
    assert "PPO: reward" not in html


def test_equal_answers_are_no_sample():
    assert text_of(page(responses=[response("a", 1, 1)])).count("None.") == 2


@pytest.mark.slow
def test_ground_truth_rewards_are_shown_under_their_names():
    truth = by_reward(candidate=0.9, sft=0.5, opponent=0.5, vs_sft=rate(0.6, 0.56, 0.64, conclusion="better"))
    content = GOOD | {"ground_truth": {"order_rule": truth, "brevity": by_reward()}}
    content["difference"] = {
        key: difference(ground_truth={"order_rule": interval(0.4, 0.3, 0.5), "brevity": interval(0.0, -0.1, 0.1)})
        for key in ("vs_sft", "vs_opponent")
    }
    text = text_of(page(content, [response("a", 2, 1, ground_truth={"order_rule": 0.75, "brevity": 0.0})]))
    assert "Ground-truth reward order_rule higher 0.900 0.500 0.500 +0.400 (+0.300 to +0.500)" in text
    assert "Ground-truth reward brevity higher 0.750 0.250 0.500 +0.000 (-0.100 to +0.100)" in text
    assert "SFT, by the ground-truth reward order_rule 0.600 (0.560 to 0.640) 0.200 0.2500 better" in text
    assert "reward 2.000, order_rule 0.750, brevity 0.000" in text
    assert "ground_truth.order_rule 0.600 0.5 ✔ passed" in text
    assert "Ground-truth reward" not in text_of(page())


def test_several_training_rewards_are_shown_under_their_names():
    parts = {"reward_model": by_reward(candidate=0.875), "politeness": by_reward(candidate=0.625)}
    text = text_of(page(GOOD | {"training": parts}))
    assert "Training reward reward_model higher 0.875 0.250 0.500 —" in text
    assert "Training reward politeness higher 0.625 0.250 0.500 —" in text
    assert "SFT, by the training reward politeness 0.500 (0.400 to 0.600) 0.200 0.2500 inconclusive" in text
    assert "Training reward reward_model" not in text_of(page())  # alone it is the training reward


def test_win_rates_by_the_references_are_shown_where_there_are_some():
    found = {
        "vs_sft": rate(0.5, 0.5, 0.5, sign_test=0.04, prompts_needed=1234),
        "vs_opponent": rate(0.6, 0.56, 0.64, conclusion="better"),
    }
    text = text_of(page(GOOD | {"references": found}, opponent=CHAMPION))
    assert "SFT, by the references 0.500 (0.500 to 0.500) 0.200 0.0400 inconclusive 1,234" in text
    assert "champion version 3, by the references 0.600 (0.560 to 0.640) 0.200 0.2500 better —" in text
    assert "by the references 0" not in text_of(page())


def test_figures_that_could_not_be_computed_are_dashes():
    content = GOOD | {"candidate": dict.fromkeys(GOOD["candidate"]), "kl": {"mean": None, "standard_error": None}}
    text = text_of(page(content))
    assert "✘ Reject" in text
    assert "Training reward higher — 0.250 0.500 " in text
    assert "KL(policy || SFT): — nats per answer, standard error —." in text


@pytest.mark.slow
def test_the_same_facts_give_the_same_bytes():
    rows = [response("a", 2, 1), response("b", 1, 2)]
    assert page(responses=rows) == page(responses=rows)


def test_what_rewards_gave_to_answers_of_nothing_is_shown():
    def perturbed(mean: float) -> dict[str, Any]:
        difference = {"value": 0.5 - mean, "low": 0.4 - mean, "high": 0.6 - mean}
        return {"answers": 8, "mean": mean, "full_marks": 0.0, "difference": difference, "separated": True}

    def of_reward(mean: float, **kinds: float) -> dict[str, Any]:
        return {"mean": mean, "full_marks": 1.0, "perturbations": {kind: perturbed(kinds[kind]) for kind in kinds}}

    rewards = {"right": of_reward(1.0, empty=0.0), "brief": of_reward(-0.25, empty=0.125, half=0.0)}
    check = NO_REWARD_CHECK | {
        "prompts": 8,
        "without_references": 3,
        "functions": ["right", "brief"],
        "weighted_sum": of_reward(0.75, empty=0.25),
        "rewards": rewards,
    }
    text = text_of(page(check=check))
    assert "on 8 validation prompts with references (3 have none)" in text
    assert "Answer Training reward Training reward right Training reward brief" in text
    assert "References 0.750 1.000 -0.250" in text
    assert "An empty answer 0.250; +0.250 (+0.150 to +0.350) 0.000; +0.500 (+0.400 to +0.600)" in text
    assert "Rewards and answers of nothing" not in page()
