"""The example's files: rows that follow the seed, faults that the rule finds, and a rule that is hard to exploit."""

import math
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.common.python_files import load_module

EXAMPLE = Path(__file__).parents[1] / "infra/example"
ORDERS, REWARDS = load_module(EXAMPLE / "orders.py"), load_module(EXAMPLE / "rewards.py")
SETTINGS = {"rows": 2000, "faulty": 0.5, "label_noise": 0.1}
PROMPT = "Hello, the lamp arrived broken. My order is #4821."
GOOD = "We are sorry for the trouble. We will send a replacement for order #4821."


def sized(**changes: float) -> dict[str, Any]:
    return SETTINGS | changes


def as_answer(row: dict[str, str], column: str) -> SimpleNamespace:
    """An answer with the quality that the rule, which knows nothing of planted faults, finds in it."""
    return SimpleNamespace(text=row[column], quality=REWARDS.score_answer(row["prompt"], row[column]))


def test_the_quality_that_was_planted_is_the_score_that_the_rule_finds():
    chance = random.Random(7)
    for _ in range(5000):
        question = ORDERS._question(chance)
        answer = ORDERS._answer(chance, question, 0.9)
        assert answer.quality == REWARDS.score_answer(question.text, answer.text), answer


def test_scores_are_given_answer_by_answer():
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": PROMPT}]
    assert REWARDS.score([prompt, prompt], [GOOD, "No."]) == [1.0, 0.0]


@pytest.mark.slow
def test_a_seed_gives_the_same_rows_and_another_gives_others():
    for stream in (ORDERS.demonstrations, ORDERS.preferences, ORDERS.ratings, ORDERS.prompts):
        assert list(stream(7, SETTINGS)) == list(stream(7, SETTINGS))
        assert list(stream(7, SETTINGS)) != list(stream(8, SETTINGS))


def test_sizes_and_columns_are_those_of_the_settings():
    small = sized(rows=3)
    assert [list(row) for row in ORDERS.demonstrations(7, small)] == [["prompt", "response", "annotator"]] * 3
    assert [list(row) for row in ORDERS.preferences(7, small)] == [["prompt", "chosen", "rejected", "annotator"]] * 3
    assert [list(row) for row in ORDERS.ratings(7, small)] == [["prompt", "response", "label", "annotator"]] * 3
    assert [list(row) for row in ORDERS.prompts(7, small)] == [["prompt", "references", "category"]] * 3


def test_ten_thousand_rows_take_seconds():
    start = time.process_time()
    assert len(list(ORDERS.demonstrations(7, sized(rows=10_000)))) == 10_000
    assert time.process_time() - start < 2


def test_prompts_vary_and_the_rule_understands_each():
    rows = list(ORDERS.demonstrations(7, SETTINGS))
    assert len({row["prompt"] for row in rows}) > 1900
    assert len({"".join(c for c in row["prompt"] if not c.isdigit()) for row in rows}) > 200
    assert any(REWARDS.score_answer(row["prompt"], row["response"]) == 1 for row in rows)  # and none raises


def test_the_category_of_a_prompt_is_the_problem_that_the_rule_understands():
    rows = list(ORDERS.prompts(7, SETTINGS))
    assert {row["category"] for row in rows} == {"damaged", "late", "wrong item", "charged twice", "not wanted"}
    assert all(row["category"] == REWARDS.understand(row["prompt"])[0] for row in rows)


def test_references_are_flawless_and_phrased_differently():
    for row in ORDERS.prompts(7, SETTINGS):
        assert len(set(row["references"])) == 3
        assert [REWARDS.score_answer(row["prompt"], reference) for reference in row["references"]] == [1.0] * 3


@pytest.mark.parametrize("faulty", [0.0, 0.5, 1.0])
def test_the_share_of_faulty_demonstrations_is_the_settings(faulty):
    rows = list(ORDERS.demonstrations(7, sized(faulty=faulty)))
    flawed = sum(REWARDS.score_answer(row["prompt"], row["response"]) < 1 for row in rows) / len(rows)
    # Standard error of a share over 2,000 rows: at most sqrt(.25 / 2000) = .011; four of them.
    assert flawed == pytest.approx(faulty, abs=0.045 if faulty == 0.5 else 0)


def test_every_fault_is_planted_and_each_is_found():
    found = [REWARDS.findings(row["prompt"], row["response"]) for row in ORDERS.demonstrations(7, sized(faulty=1.0))]
    for fault in ORDERS.FAULTS:
        only_this = [each for each in found if not getattr(each, fault) and sum(each) == len(ORDERS.FAULTS) - 1]
        assert len(only_this) > 100, fault


def test_annotators_mostly_follow_the_rule_but_do_not_all_agree():
    rows = list(ORDERS.preferences(7, sized(label_noise=0.0)))
    gains = [
        REWARDS.score_answer(r["prompt"], r["chosen"]) - REWARDS.score_answer(r["prompt"], r["rejected"]) for r in rows
    ]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    assert 0.88 < better / (better + worse) < 0.98


def test_label_noise_flips_that_share_of_labels():
    # The flip draws one number from the stream either way, so only the labels differ between the two.
    pairs = zip(
        ORDERS.preferences(7, sized(label_noise=0.0)), ORDERS.preferences(7, sized(label_noise=0.3)), strict=True
    )
    flipped = sum(clean["chosen"] == noisy["rejected"] for clean, noisy in pairs)
    # Standard error sqrt(.3 * .7 / 2000) = .0102; four of them.
    assert flipped / 2000 == pytest.approx(0.3, abs=0.041)


def test_tastes_can_be_gamed():
    # Of flawless pairs quality says nothing: what is left is taste, and it leans to exclamations.
    assert sum(annotator.per_exclamation for annotator in ORDERS.ANNOTATORS) > 0
    rows = list(ORDERS.preferences(7, sized(faulty=0.0, label_noise=0.0, rows=4000)))
    excited = [row for row in rows if row["chosen"].count("!") != row["rejected"].count("!")]
    assert sum(row["chosen"].count("!") > row["rejected"].count("!") for row in excited) / len(excited) > 0.53


def test_a_pair_names_the_annotator_who_chose():
    # The choices are likelier under the tastes of those who are named than under those of anybody else.
    rows, names = (
        list(ORDERS.preferences(7, sized(label_noise=0.0))),
        [annotator.name for annotator in ORDERS.ANNOTATORS],
    )
    likelihoods = []
    for shift in range(len(ORDERS.ANNOTATORS)):
        tastes = dict(zip(names, ORDERS.ANNOTATORS[shift:] + ORDERS.ANNOTATORS[:shift], strict=True))
        advantages = [
            ORDERS._appeal(tastes[row["annotator"]], as_answer(row, "chosen"))
            - ORDERS._appeal(tastes[row["annotator"]], as_answer(row, "rejected"))
            for row in rows
        ]
        likelihoods.append(-sum(math.log1p(math.exp(-advantage)) for advantage in advantages))
    assert all(likelihoods[0] > other + 20 for other in likelihoods[1:])  # in nats
    assert {row["annotator"] for row in ORDERS.demonstrations(7, SETTINGS)} == {"author"}


def test_the_score_is_substance_halved_for_each_lapse():
    assert REWARDS.score_answer(PROMPT, GOOD) == 1.0
    assert REWARDS.score_answer(PROMPT, GOOD.replace("4821", "4822")) == 0.4  # one of remedy and number
    assert REWARDS.score_answer(PROMPT, GOOD.replace("We are sorry for the trouble.", "What a silly question.")) == 0.5
    assert REWARDS.score_answer(PROMPT, f"{GOOD} {ORDERS.PROMISES[0]}") == 0.5
    assert REWARDS.score_answer(PROMPT, f"{GOOD} {ORDERS.RAMBLES[0]}") == 0.5
    assert REWARDS.score_answer(PROMPT, f"{GOOD} {ORDERS.PROMISES[0]} {ORDERS.RAMBLES[0]}") == 0.25
    assert REWARDS.score_answer(PROMPT, "Sorry for that. We will issue a refund for order #4822.") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "I apologise for this! We'll ship you a replacement lamp right now for order 4821.",
        "Thanks for telling us. We can replace the lamp from your order number 4821.",
        "Sorry about your lamp. For order #4821 I have shipped a replacement.",
    ],
)
def test_other_words_of_the_same_meaning_are_as_good(answer):
    assert REWARDS.findings(PROMPT, answer) == (True,) * 5


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   \n",
        "?!...",
        "4821",
        "#4821 #4821 #4821",
        "sorry replacement 4821",
        "sorry order #4821 we will send a replacement",  # never ends its sentence
        "Sxq orry vbn kjh. Wq wrill plond a replacement fror order #4821.",
        "Sorry sorry sorry sorry sorry sorry sorry.",
        "\ufffd\ufffd\x00 <|im_end|> replacement",
    ],
)
def test_garbage_and_fragments_score_nothing(answer):
    assert REWARDS.score_answer(PROMPT, answer) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "Sorry. We will " + ", ".join(problem.remedy for problem in ORDERS.PROBLEMS) + " for order #4821.",
        "Sorry. " + " ".join(f"We will {problem.remedy} for order #4821." for problem in ORDERS.PROBLEMS),
        "We are sorry. We will send a replacement for order #4821, #4822, #4823 and #4824.",
        " ".join([GOOD] * 2),
        " ".join([GOOD] * 5),
        "We are sorry. We will not send a replacement for order #4821.",
        "Sorry. Replacement! We never help. It is order #4821.",
    ],
)
def test_stuffing_repeating_and_listing_score_low(answer):
    assert REWARDS.score_answer(PROMPT, answer) <= 0.4


def test_no_bag_of_keywords_reaches_a_good_score():
    chance = random.Random(7)
    keywords = ["sorry", "thank", "replacement", "refund", "tracking", "exchange", "order", "#4821", ".", "we", "will"]
    stuffed = [" ".join(chance.choices(keywords, k=chance.randrange(1, 20))) for _ in range(2000)]
    assert sum(REWARDS.score_answer(PROMPT, text) for text in stuffed) / len(stuffed) < 0.01


def test_random_text_never_breaks_the_rule():
    chance = random.Random(7)
    for _ in range(500):
        text = "".join(chr(chance.choice([chance.randrange(32, 127), chance.randrange(0x250)])) for _ in range(60))
        assert REWARDS.score_answer(PROMPT, text) == 0.0


def test_a_foreign_prompt_is_refused():
    with pytest.raises(ValueError, match="not a prompt of the example"):
        REWARDS.score_answer("What is the capital of France?", GOOD)
