from collections import Counter

import numpy as np
import pytest

from tasks.data.records import Message, Prompt
from tasks.evaluation.categories import by_category, confidence_of_each, fewest_prompts
from tasks.evaluation.compare import Resampling, bootstrap_interval, sign_test, win_rate
from tasks.evaluation.measured import Measured, measure, model_figures
from tasks.evaluation.metrics import Answers
from tasks.evaluation.scores import Scores
from tasks.evaluation.summary import rounded
from tests.evaluation.evaluations import GOOD, checks

RESAMPLING = Resampling(resamples=100, confidence=0.95, seed=1)


def answered(rewards):
    count = len(rewards)
    answers = Answers(["answer"] * count, list(range(count)), [True] * count)
    scores = Scores(list(rewards), {"reward_model": list(rewards)}, [2 * reward for reward in rewards], {})
    return Measured(answers, scores, [None] * count, [0.0] * count)


def asked(categories, references=()):
    prompt = Prompt("id", "test", "r.jsonl", 1, [Message(role="user", content="Why?")], list(references))
    return [prompt._replace(category=category) for category in categories]


def compared(categories, ours, theirs):
    models = {"candidate": answered(ours), "sft": answered(theirs), "opponent": answered(theirs)}
    return by_category(asked(categories), models, RESAMPLING)


def check_of(sizes, losses, seed):
    """The gate's check where the candidate's rewards are lower by so many deviations in each category."""
    generator = np.random.default_rng(seed)
    categories = [f"kind {number}" for number, size in enumerate(sizes) for _ in range(size)]
    lower = np.repeat(losses, sizes)
    ours, theirs = (generator.normal(size=len(categories)) for _ in range(2))
    found = rounded({"categories": compared(categories, (ours - lower).tolist(), theirs.tolist())})
    return checks(GOOD | found)["category_regressions"]


def test_a_category_is_summed_up_by_its_own_prompts():
    found = compared(["tax", None, "law", "tax"], [1.0, 9.0, 3.0, 2.0], [0.0, 9.0, 4.0, 4.0])
    assert list(found) == ["law", "tax"]
    tax = found["tax"]
    # its prompts are the first and the last: won by 1, lost by 2
    assert (tax["prompts"], tax["enough_prompts"]) == (2, False)
    assert {name: tax["candidate"][name] for name in ("reward", "length", "eos_rate", "repetition", "bleu")} == {
        "reward": 1.5,
        "length": 1.5,
        "eos_rate": 1.0,
        "repetition": 0.0,
        "bleu": None,  # no references
    }
    assert tax["opponent"]["reward"] == 2.0
    held_out = win_rate([2.0, 4.0], [0.0, 8.0], RESAMPLING)
    assert tax["held_out"] == {"candidate": 3.0, "sft": 4.0, "opponent": 4.0, "vs_opponent": held_out}
    assert (tax["references"], tax["ground_truth"]) == (None, {})
    assert tax["win_rate"]["vs_opponent"] == win_rate([1.0, 2.0], [0.0, 4.0], RESAMPLING)
    assert tax["difference"]["vs_opponent"]["reward"] == bootstrap_interval([1.0, -2.0], RESAMPLING)


def test_turns_of_a_conversation_do_not_make_a_category_large():
    count = fewest_prompts(0.95)
    models = {"candidate": answered([0.0] * count), "sft": answered([1.0] * count), "opponent": answered([1.0] * count)}
    for conversations, enough in ((range(count), True), ([n // 2 for n in range(count)], False)):
        draws = RESAMPLING._replace(conversations=tuple(map(str, conversations)))
        assert by_category(asked(["tax"] * count), models, draws)["tax"]["enough_prompts"] == enough


def test_every_metric_is_that_of_the_category_alone():
    prompts = [*asked(["tax", "law"], ["pay the tax today"]), *asked(["tax"], ["ask a judge"])]
    answers = {
        "candidate": ["pay the tax today", "no idea", "ask a judge"],
        "opponent": ["no idea", "pay the tax today", "no idea"],
    }
    models = {
        name: measure(
            prompts,
            Answers(texts, [4, 2, 3], [True, True, False]),
            Scores([0.0] * 3, {}, [0.0] * 3, {"characters": [float(len(text)) for text in texts]}),
        )
        for name, texts in answers.items()
    }
    found = by_category(prompts, models, RESAMPLING)
    own = {"tax": [0, 2], "law": [1]}
    for category, places in own.items():
        chosen = [prompts[place] for place in places]
        for name, model in models.items():
            assert found[category][name] == model_figures(chosen, model.at(places))
    assert found["tax"]["candidate"]["rouge_l"] == found["law"]["opponent"]["rouge_l"] == 1.0
    assert found["tax"]["opponent"]["rouge_l"] == found["law"]["candidate"]["rouge_l"] == 0.0
    assert found["tax"]["candidate"]["eos_rate"] == 0.5
    assert found["tax"]["references"]["vs_opponent"].value == 1.0
    assert found["law"]["references"]["vs_opponent"].value == 0.0
    characters = found["tax"]["ground_truth"]["characters"]
    assert (characters["candidate"], characters["opponent"]) == (14.0, 7.0)  # (17 + 11) / 2 characters, and 7
    assert characters["vs_opponent"].wins == 2


def test_prompts_without_a_category_have_no_figures():
    assert compared([None, None], [1.0, 2.0], [0.0, 0.0]) == {}


@pytest.mark.parametrize(("confidence", "prompts"), [(0.95, 6), (0.99, 8), (0.995, 9)])
def test_the_fewest_prompts_for_a_conclusion_are_those_of_the_sign_test(confidence, prompts):
    # 2 / 2^5 = .0625 and 2 / 2^6 = .03125; 2 / 2^7 = .0156 and 2 / 2^8 = .0078; 2 / 2^9 = .0039
    assert fewest_prompts(confidence) == prompts
    assert sign_test(0, prompts) < 1 - confidence <= sign_test(0, prompts - 1)


@pytest.mark.parametrize(
    ("sizes", "share"),
    [
        ([], 1),
        ([100], 1),
        ([100] * 5, 5),
        # Three prompts can show nothing at any confidence, so those thirty are not looked at.
        ([3] * 30 + [40] * 2, 2),
        # Eight prompts could at .05 / 6 (2 / 2^8 = .0078 < .0083), but those are 32 > 6; at .05 / 7 they cannot.
        ([8] * 30 + [40] * 2, 7),
    ],
)
def test_the_confidence_of_each_is_shared_by_those_that_can_have_a_conclusion(sizes, share):
    assert confidence_of_each(sizes, 0.95) == pytest.approx(1 - 0.05 / share)


def test_all_categories_are_compared_at_the_raised_confidence():
    ours, theirs = [0.0] * 16, [1.0] * 8 + [-1.0] + [1.0] * 7
    found = compared(["law"] * 8 + ["tax"] * 8, ours, theirs)
    assert all(each["enough_prompts"] for each in found.values())  # 2 / 2^8 < .05 / 2
    # eight of eight: p = .0078; seven of eight: p = 2 * 9 / 2^8 = .07
    assert [each["win_rate"]["vs_opponent"].conclusion for each in found.values()] == ["worse", "inconclusive"]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[40] * 6, [8] * 12, [3, 5, 8, 13, 21, 34, 55]], ids=["even", "small", "uneven"])
def test_noise_alone_refuses_no_more_often_than_the_confidence_allows(sizes):
    # 1 - .95 of 200 are 10.
    assert sum(check_of(sizes, [0.0] * len(sizes), seed).verdict == "failed" for seed in range(200)) <= 10


def test_a_loss_in_one_category_is_found():
    # Lower by one deviation of an answer's reward, it wins 24 % of that category's prompts.
    sizes, losses = [60] * 5, [1.0, 0.0, 0.0, -0.5, 0.0]
    found = [check_of(sizes, losses, seed) for seed in range(40)]
    assert Counter(check.verdict for check in found)["failed"] >= 36
    assert sum(" there: kind 0 0." in check.sentence for check in found) >= 36


def test_a_category_too_small_for_a_conclusion_is_named_and_not_counted():
    check = check_of([60, 4], [-0.5, 9.0], 1)  # all four are lost
    assert (check.verdict, check.figure) == ("passed", 0)
    assert check.sentence.endswith(" 1 of 2 have too few prompts for a conclusion: kind 1.")
