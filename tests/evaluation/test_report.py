import base64
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from tasks.evaluation.gate.checks import Evidence, decide, reasons, run_checks
from tasks.evaluation.gate.report import Background, Judgement, render
from tasks.evaluation.opponent import Opponent
from tests.evaluation.test_checks import GOOD, JUDGE, REWARD, THRESHOLDS

SFT, CHAMPION = Opponent("sft", None, None), Opponent("champion", 3, "ab.dir")
HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\""
EVEN, WON = {"value": 0.5, "low": 0.5, "high": 0.5}, {"value": 0.6, "low": 0.56, "high": 0.64}
EVALUATION: dict[str, Any] = GOOD | {
    "prompts": 120,
    "with_references": 100,
    "confidence": 0.95,
    "candidate": {**GOOD["candidate"], "reward": 1.5, "bleu": None},
    "sft": {"reward": 0.25, "length": 10.0},
    "opponent": {**GOOD["opponent"], "reward": 0.5},
    "difference": {"vs_opponent": {"reward": {"value": 1.0, "low": 0.75, "high": 1.25}}},
    "win_rate": {
        "vs_sft": {"value": 0.75, "low": 0.7, "high": 0.8, "ties": 0.1, "sign_test": 0.001, "verdict": "better"},
        "vs_opponent": {"value": 0.7, "low": 0.6, "high": 0.8, "ties": 0.2, "sign_test": 0.002, "verdict": "better"},
    },
    "methods": {"bleu": None, "meteor": "exact+stem"},
    "frontier": [
        {"kl": {"mean": far}, "win_rate": {"reward": won, "held_out": won}} | mark
        for far, won, mark in zip((0.0, 1.5, 3.0), (EVEN, WON, WON), GOOD["frontier"], strict=True)
    ],
    "best_of_sft": [{"n": 2, "kl": 0.193, "win_rate": {"reward": WON, "held_out": EVEN}}],
    "categories": {
        "law": GOOD["categories"]["law"]
        | {"prompts": 30, "candidate": {"reward": 1.5}, "opponent": {"reward": 1.0}}
        | {"difference": {"vs_opponent": {"reward": {"value": 0.5, "low": 0.25, "high": 0.75}}}},
        "tax": GOOD["categories"]["tax"] | {"prompts": 3},
    },
}


VALIDATION: dict[str, Any] = {
    "preferences": {
        "rows": 50,
        "kept": 47,
        "quarantined": 3,
        "splits": {"train": 37, "validation": 5, "test": 5},
        "findings": {"length": {"train": 2, "test": 1}},
        "tokens": {"mean": 66.39, "max": 116},
    },
    "warnings": [],
}
CURVES = {
    "sft": [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0}],
    "reward": [{"step": 1.0, "loss": 0.7}, {"step": 2.0, "loss": 0.5}],
    "ppo": [{"step": 1.0, "reward": 0.0, "kl": 0.0}, {"step": 2.0, "reward": 1.0, "kl": 2.0}],
}


def response(name, ours, theirs, answer="fine", **more):
    return {
        "prompt": [{"role": "user", "content": f"prompt {name}"}],
        "references": [f"reference {name}"],
        "candidate": {"answer": answer, "reward": ours} | more,
        "opponent": {"answer": f"answer of {name}", "reward": theirs},
    }


def page(evaluation=EVALUATION, responses=(), opponent=SFT, reward=REWARD, warnings=(), validation=VALIDATION):
    checks = run_checks(Evidence(evaluation, reward, JUDGE, opponent), THRESHOLDS)
    judgement = Judgement(decide(checks), reasons(checks), list(warnings), checks, opponent)
    return render(judgement, evaluation, responses, Background(reward, validation, CURVES))


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
def test_the_verdict_comes_first_with_its_reasons():
    text = text_of(page())
    assert text.index("✔ Promote") < text.index("its lower bound reaches 0.5") < text.index("What this does not show")
    assert "The candidate beside SFT, on 120 prompts" in text


@pytest.mark.parametrize(("low", "word"), [(0.6, "✔ Promote"), (0.4, "? Inconclusive")])
def test_the_verdict_reads_without_colour(low, word):
    versus = EVALUATION["win_rate"]["vs_opponent"] | {"low": low}
    assert word in page(EVALUATION | {"win_rate": {"vs_opponent": versus}})


@pytest.mark.slow
def test_what_intervals_are_over_is_said_where_prompts_are_turns():
    assert "interval over the 40 conversations that the prompts are turns of, conf" in text_of(
        page(EVALUATION | {"conversations": 40})
    )
    assert "paired bootstrap interval, confidence" in text_of(page())
    shared = {"accuracy": {"value": 0.75, "low": 0.7, "high": 0.8, "pairs": 646, "effective_pairs": 244.3}}
    assert "Pairs that share no prompt and would tell as much 244" in text_of(page(reward=shared))


def test_a_rejection_says_which_check_failed():
    text = text_of(page(EVALUATION | {"kl": {"mean": 50.0, "standard_error": 1.0}}))
    assert "✘ Reject" in text
    assert "kl 50.000 10 ✘ failed The policy is 50.000 nats an answer away from SFT: more than the 10 allowed." in text


def test_figures_stand_side_by_side_with_the_interval_of_their_difference():
    text = text_of(page())
    assert "Reward higher 1.500 0.250 0.500 +1.000 (+0.750 to +1.250)" in text
    assert "BLEU higher — — — —" in text
    assert "meteor: exact+stem." in text


def test_a_champion_is_compared_beside_sft():
    text = text_of(page(opponent=CHAMPION))
    assert "SFT, by the reward model 0.750 (0.700 to 0.800) 0.100 0.0010 better" in text
    assert "champion version 3, by the reward model 0.700 (0.600 to 0.800) 0.200 0.0020 better" in text


def test_hostile_output_of_a_model_stays_text():
    row = response(HOSTILE, 2.0, 1.0, answer=HOSTILE) | {"references": [HOSTILE]}
    hostile = {"methods": {"meteor": HOSTILE}, "categories": {HOSTILE: GOOD["categories"]["law"]}}
    sources = {"accuracy_by_source": {HOSTILE: REWARD["accuracy"]}}
    html = page(EVALUATION | hostile, [row], reward=REWARD | sources, warnings=[HOSTILE])
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
    assert len(pictures) == len(["learning curves", "frontier"])
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
def test_the_judge_is_described():
    reward = REWARD | {
        "calibration_error": 0.05,
        "accuracy_by_confidence": {"0.5-0.6": {"value": 0.5, "pairs": 4}, "0.6-0.7": {"value": None, "pairs": 0}},
        "margin": {"mean": 0.5, "largest": 2.0, "histogram": [1, 0, 2, 1]},
    }
    html = page(reward=reward, responses=[response("a", 2, 1, length=8)])
    assert "Accuracy 0.750 (0.700 to 0.800)" in text_of(html)
    assert "Expected calibration error 0.050" in text_of(html)
    assert "Reliability curve of the reward model" in html
    assert "Histogram of the reward model's margins" in unescape(html)
    assert "Reliability curve" not in page()
    assert "Histogram" not in page()


@pytest.mark.slow
def test_the_judges_accuracy_is_told_by_source_and_annotator():
    sources = {
        "data/a.jsonl": {"value": 0.75, "low": 0.625, "high": 0.875, "pairs": 40},
        "org/name": {"value": 0.5, "low": 0.25, "high": 0.75, "pairs": 12},
    }
    text = text_of(page(reward=REWARD | {"accuracy_by_source": sources}))
    assert "Source Pairs Accuracy data/a.jsonl 40 0.750 (0.625 to 0.875) org/name 12 0.500 (0.250 to 0.750)" in text
    assert "Annotator" not in text
    text = text_of(page(reward=REWARD | {"accuracy_by_annotator": {"ada": sources["org/name"]}}))
    assert "Annotator Pairs Accuracy ada 12 0.500 (0.250 to 0.750)" in text
    assert "Source Pairs" not in text


@pytest.mark.slow
def test_lengths_are_drawn_where_they_are_known():
    row = response("a", 2, 1, length=8)
    row["opponent"]["length"] = 5
    assert "Difference of reward against difference of length" in page(responses=[row])
    assert "Difference of reward against difference of length" not in page(responses=[response("a", 2, 1)])


def test_the_data_are_counted():
    assert "preferences 50 47 3 37 5 5 66.4 116 length 3" in text_of(page())


def test_the_way_of_the_training_stands_beside_best_of_n():
    html = page()
    text = text_of(html)
    assert "Win rate over SFT against KL, along the training and of best of n" in html
    even, won, rate = (
        f"{a} ({b} to {c})"
        for a, b, c in (("0.500", "0.500", "0.500"), ("0.600", "0.560", "0.640"), ("0.500", "0.400", "0.600"))
    )
    assert f"step 0 0.000 {even} {even} — {rate} {rate} —" in text
    assert f"step 40 1.500 {won} {won} — {rate} 0.400 (0.400 to 0.600) —" in text
    assert f"step 80 3.000 {won} {won} — — — —" in text
    assert f"best of 2 0.193 {won} {even} — — — —" in text


def test_without_marks_there_is_no_frontier():
    html = page(EVALUATION | {"frontier": []})
    assert "Win rate over SFT against KL" not in html
    assert "best of 2 0.193" in text_of(html)


def test_categories_stand_below_one_another_where_there_are_some():
    text = text_of(page())
    rate = "0.500 (0.400 to 0.600)"
    assert f"law 30 1.500 1.000 +0.500 (+0.250 to +0.750) {rate} inconclusive" in text
    assert f"tax 3 — — — {rate} too few prompts" in text
    assert "By category" not in page(EVALUATION | {"categories": {}})


def test_an_llm_judge_stands_beside_the_others_with_its_bias():
    counts = {"prompts": 120, "same_answers": 20, "without_verdict": 5, "asked_again": 8, "agreement": 0.75}
    rate = {"value": 0.6, "low": 0.5, "high": 0.7, "ties": 0.25, "sign_test": 0.04, "verdict": "better"}
    told = {"model": "judge-7b", "first_preferred": 0.625, "vs_opponent": rate, **counts}
    text = text_of(page(EVALUATION | {"llm_judge": told}))
    assert "SFT, by judge-7b 0.600 (0.500 to 0.700) 0.250 0.0400 better" in text
    assert "Of 120 prompts 20 have the same answer twice and were not asked, 5 have no verdict; 8 replies" in text
    assert "agree on a share of 0.750; the answer that stood first was preferred in a share of 0.625" in text
    assert "in both orders" not in page()


def test_either_method_shows_its_curve():
    curves = {"dpo": [{"step": 1.0, "loss": 0.7, "reward": 0.0}]}
    html = render(Judgement("reject", [], [], [], SFT), EVALUATION, [], Background(REWARD, {}, curves))
    assert "DPO: reward margin" in html
    assert "PPO: reward" not in html


def test_equal_answers_are_no_sample():
    assert text_of(page(responses=[response("a", 1, 1)])).count("None.") == 2


def test_the_known_rule_is_shown_where_there_is_one():
    gold = {"candidate": 0.9, "sft": 0.5, "opponent": 0.5, "vs_sft": WON | {"verdict": "better"}}
    difference = {
        "vs_opponent": {name: {"value": 0.4, "low": 0.3, "high": 0.5} for name in ("ground_truth", "held_out")}
    }
    text = text_of(
        page(EVALUATION | {"ground_truth": gold, "difference": difference}, [response("a", 2, 1, gold=0.75)])
    )
    assert "Known rule higher 0.900 0.500 0.500 +0.400 (+0.300 to +0.500)" in text
    assert re.search(r"Held-out judge higher \S+ \S+ \S+ \+0\.400 \(\+0\.300 to \+0\.500\)", text)
    assert "SFT, by the known rule 0.600 (0.560 to 0.640) — — better" in text
    assert "reward 2.000, known rule 0.75" in text
    assert "Known rule" not in text_of(page())


def test_who_the_references_prefer_is_shown_where_there_are_some():
    rate = EVEN | {"ties": 0.2, "sign_test": 0.04, "verdict": "inconclusive", "prompts_to_settle": 1234}
    found = {"vs_sft": rate, "vs_opponent": WON | {"verdict": "better", "prompts_to_settle": None}}
    text = text_of(page(EVALUATION | {"references": found}, opponent=CHAMPION))
    assert "SFT, by the references 0.500 (0.500 to 0.500) 0.200 0.0400 inconclusive 1,234" in text
    assert "champion version 3, by the references 0.600 (0.560 to 0.640) — — better —" in text
    assert "by the references 0" not in text_of(page(EVALUATION | {"references": None}))


@pytest.mark.parametrize("evaluation", [{}, {"win_rate": None, "methods": None, "candidate": 3}])
def test_missing_figures_are_dashes(evaluation):
    text = text_of(page(evaluation, reward={}))
    assert "✘ Reject" in text
    assert "Reward higher — — — —" in text


@pytest.mark.slow
def test_the_same_facts_give_the_same_bytes():
    rows = [response("a", 2, 1), response("b", 1, 2)]
    assert page(responses=rows) == page(responses=rows)
