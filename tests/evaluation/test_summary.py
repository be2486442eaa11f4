import json
import math
from typing import NamedTuple

import pytest

from tasks.data.records import Message, Prompt
from tasks.evaluation.best_of import BestOf
from tasks.evaluation.compare import Resampling
from tasks.evaluation.measured import measure
from tasks.evaluation.metrics import Answers
from tasks.evaluation.scores import Scores
from tasks.evaluation.summary import response_rows, rounded, summarise
from tests.evaluation.evaluations import SFT

RESAMPLING = Resampling(resamples=500, confidence=0.95, seed=1)
WORDS = ["we are sorry", "a replacement is sent", "thank you for writing", "your order is on its way"]


def make_prompts(count, references=True):
    return [
        Prompt(
            id=f"{number:02}",
            split="test",
            source="rows.jsonl",
            row=number + 1,
            prompt=[Message(role="user", content=f"question {number}")],
            references=[f"answer {number}: {WORDS[number % 4]} today"] if references else [],
        )
        for number in range(count)
    ]


class Replies(NamedTuple):
    """Answers with their training rewards."""

    answers: Answers
    rewards: list[float]


def make_answers(count, reward=0.0, more="", ended=True):
    texts = [f"answer {number}: {WORDS[number % 4]}{more}" for number in range(count)]
    lengths = [len(text.split()) for text in texts]
    return Replies(Answers(texts, lengths, [ended] * count), [reward + number / 10 for number in range(count)])


def with_words(more):
    """An answer a prompt, with more words or without."""
    return answered(*(f"answer {number}{words}" for number, words in enumerate(more)))


def answered(*texts):
    """Answers that have the same training reward."""
    answers = Answers(list(texts), [len(text.split()) for text in texts], [True] * len(texts))
    return Replies(answers, [0.0] * len(texts))


def measured(prompts, replies, held_out=None, **ground_truth):
    """The replies with their scores; by the held-out reward model they are those of the training reward by default."""
    held_out = replies.rewards if held_out is None else held_out
    return measure(
        prompts, replies.answers, Scores(replies.rewards, {"reward_model": replies.rewards}, held_out, ground_truth)
    )


def compare(candidate, sft, references=True, rule=None, kl=None, prompts=None):
    prompts = prompts or make_prompts(len(sft.rewards), references)

    def scored(replies):
        return measured(prompts, replies, **({"rule": list(map(rule, replies.answers.texts))} if rule else {}))

    models = {"opponent": scored(sft), "candidate": scored(candidate)}
    models["sft"] = models["opponent"]
    return summarise(
        prompts,
        models,
        kl or [0.5] * len(prompts),
        opponent=SFT,
        perplexity={"candidate": 2.0, "sft": None},
        best_of_sft=[BestOf(2, 0.2, {"reward": [1.0, 2.0]}, {"reward": [0.5, 1.0]})],
        points=[],
        resampling=RESAMPLING,
    ).as_json()


def test_a_policy_equal_to_sft_neither_wins_nor_loses():
    found = compare(make_answers(12), make_answers(12))
    expected = {"value": 0.5, "low": 0.5, "high": 0.5, "ties": 1.0, "wins": 0, "losses": 0}
    undecided = {"sign_test": 1.0, "conclusion": "inconclusive", "prompts_needed": None}
    assert found["win_rate"]["vs_sft"] == expected | undecided
    assert found["length_controlled_win_rate"]["vs_sft"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["difference"]["vs_sft"]["reward"] == {"value": 0, "low": 0, "high": 0}
    assert found["candidate"] == found["sft"]
    assert found["opponent"] == {"name": "sft", "version": None} | found["sft"]


def test_how_sfts_cut_answers_score_is_a_figure_where_there_are_some():
    ours, theirs = make_answers(24), make_answers(24)
    assert "sft_cut_answers" not in compare(ours, theirs)
    rewards = [-1.0, 1.0] * 8 + [-4.0, -2.0] * 4
    cut = Replies(theirs.answers._replace(ended=[True] * 16 + [False] * 8), rewards)
    found = compare(ours, cut)["sft_cut_answers"]
    assert found["share"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["gap"] == pytest.approx(math.sqrt(3), abs=1e-6)  # 3 over the root of 1 within and 2 between
    assert "sft_cut_answers" not in compare(cut, ours)


def test_turns_of_a_conversation_are_drawn_together():
    prompts = make_prompts(12)
    prompts[3] = prompts[3]._replace(references=[])  # what is measured against references has fewer prompts
    ours, theirs = make_answers(12, reward=0.1, more=" today"), make_answers(12)
    models = {
        "opponent": measured(prompts, theirs),
        "candidate": measured(prompts, ours, [1.0] * 12),
    }
    best = [BestOf(2, 0.2, {"reward": theirs.rewards}, {"reward": [0.5] * 12})]

    def summed(*conversations):
        draws = RESAMPLING._replace(conversations=conversations or None)
        models["sft"] = models["opponent"]
        kl = [float(n % 5) for n in range(12)]
        perplexity = {"candidate": None, "sft": None}
        return summarise(
            prompts, models, kl, opponent=SFT, perplexity=perplexity, best_of_sft=best, points=[], resampling=draws
        ).as_json()

    alone, together = summed(), summed(*"aabbccddeeff")
    assert (alone.get("conversations"), together["conversations"]) == (None, 6)
    assert summed(*"abcdefghijkl") == alone
    for path in (
        ("difference", "vs_sft", "rouge_l"),
        ("references", "vs_sft"),
        ("held_out", "vs_sft"),
        ("best_of_sft", 0, "scores", "reward"),
    ):
        one, two = alone, together
        for key in path:
            one, two = one[key], two[key]
        assert one["value"] == two["value"]
    assert together["win_rate"]["vs_sft"]["sign_test"] == 2 / 2**6  # six conversations, all won
    assert alone["win_rate"]["vs_sft"]["sign_test"] == pytest.approx(2 / 2**12, abs=1e-6)
    assert together["kl"] != alone["kl"]


def test_a_better_policy_wins_every_prompt():
    found = compare(make_answers(12, reward=1.0, more=" today"), make_answers(12))
    assert found["win_rate"]["vs_opponent"]["value"] == 1
    assert found["win_rate"]["vs_opponent"]["conclusion"] == "better"
    # every reward one higher, every answer one word longer
    assert found["difference"]["vs_sft"]["reward"] == {"value": 1, "low": 1, "high": 1}
    assert found["difference"]["vs_sft"]["length"] == {"value": 1, "low": 1, "high": 1}
    assert (
        found["difference"]["vs_sft"]["held_out"]["value"] == found["held_out"]["candidate"] - found["held_out"]["sft"]
    )
    assert found["candidate"]["bleu"] == pytest.approx(100)
    assert found["candidate"]["rouge_l"] == 1 > found["sft"]["rouge_l"]


def test_kl_has_its_standard_error():
    # 0 and 2 alternating, 4 of them: variance 4/3, so sqrt(4/3/4)
    found = compare(make_answers(4), make_answers(4), kl=[0.0, 2.0, 0.0, 2.0])
    assert found["kl"] == {"mean": 1.0, "standard_error": round((1 / 3) ** 0.5, 6)}


def test_without_references_the_overlap_is_null():
    found = compare(make_answers(5), make_answers(5), references=False)
    assert found["with_references"] == 0
    overlap = ("bleu", "chrf", "rouge_1", "rouge_2", "rouge_l", "meteor")
    assert [found["candidate"][name] for name in overlap] == [None] * 6
    assert found["difference"]["vs_sft"]["rouge_l"] is None
    assert found["references"] is None
    assert found["methods"]["bleu"] is None
    assert found["ground_truth"] == {}


def test_one_prompt_has_no_standard_error():
    assert compare(make_answers(1), make_answers(1), kl=[0.3])["kl"] == {"mean": 0.3, "standard_error": None}


def test_a_ground_truth_reward_is_compared_by_prompt():
    def rule(text):
        return float("today" in text)

    # The rule likes the candidate's answers to the first five prompts and those of SFT to the last two: 4 wins, 1 tie.
    candidate = with_words([" today"] * 5 + [""])
    figures = compare(candidate, with_words([""] * 4 + [" today"] * 2), rule=rule)
    found = figures["ground_truth"]["rule"]
    assert (found["candidate"], found["sft"]) == (0.833333, 0.333333)  # 5/6, 2/6
    assert figures["difference"]["vs_sft"]["ground_truth"]["rule"]["value"] == 0.5  # (1 + 1 + 1 + 1 + 0 - 1) / 6
    interval = found["vs_sft"].pop("low"), found["vs_sft"].pop("high")
    assert 0 < interval[0] < 0.75 < interval[1] == 1
    assert found["vs_sft"] == {
        "value": 0.75,  # (4 + 1/2) / 6
        "ties": 0.166667,
        "wins": 4,
        "losses": 1,
        "sign_test": 0.375,  # 2 (5 + 1) / 2^5
        "conclusion": "inconclusive",
        "prompts_needed": 19,  # variance (4 * .25^2 + .25^2 + .75^2) / 6 = .1458; 7.849 * .1458 / .25^2 = 18.3
    }
    assert figures["difference"]["vs_opponent"]["ground_truth"] == figures["difference"]["vs_sft"]["ground_truth"]


def test_by_the_references_the_answer_nearer_to_the_best_of_them_wins():
    asked = [
        ["We will send a new lamp", "A refund is due"],
        ["Yes it is"],
        ["It is on its way"],
        [],
        ["Reset the router"],
    ]
    prompts = [prompt._replace(references=own) for prompt, own in zip(make_prompts(5), asked, strict=True)]
    # ROUGE-L F1 with the best reference: 1 (the second) against 10/11 (the first: five words of five and of six);
    # the same; 0 against 1; no reference; 1 against 2/3 (two words of three in order).
    candidate = answered("A refund is due", "It is", "No", "Never mind", "Reset the router")
    rival = answered("We will send a lamp", "It is", "It is on its way", "Mind you", "The router reset")
    figures = compare(candidate, rival, prompts=prompts)
    assert figures["with_references"] == 4
    assert figures["win_rate"]["vs_sft"]["ties"] == 1  # by the training reward nobody wins
    found = figures["references"]
    assert found["vs_opponent"] == found["vs_sft"]
    interval = found["vs_sft"].pop("low"), found["vs_sft"].pop("high")
    assert 0 < interval[0] < 0.625 < interval[1] == 1
    assert found["vs_sft"] == {
        "value": 0.625,  # (1 + 1/2 + 0 + 1) / 4
        "ties": 0.25,
        "wins": 2,
        "losses": 1,
        "sign_test": 1.0,  # two of three, either way: 8 / 2^3
        "conclusion": "inconclusive",
        "prompts_needed": 87,  # variance (2 * .375^2 + .125^2 + .625^2) / 4 = .1719; 7.849 * .1719 / .125^2 = 86.3
    }


def test_best_of_n_is_a_mean_over_prompts():
    [found] = compare(make_answers(5), make_answers(5))["best_of_sft"]
    assert (found["n"], found["kl"]) == (2, 0.2)
    assert found["scores"]["reward"] == {"value": 1.5, "low": 1.0, "high": 2.0}
    assert found["win_rate"]["reward"] == {"value": 0.75, "low": 0.5, "high": 1.0}


def test_reruns_give_the_same_bytes():
    texts = {json.dumps(compare(make_answers(20, reward=0.01), make_answers(20)), allow_nan=False) for _ in range(2)}
    assert len(texts) == 1


def test_rows_hold_what_a_person_wants_to_read():
    prompts = make_prompts(2)
    models = {"candidate": measured(prompts, make_answers(2, ended=False), [0.5, 1.5], rule=[0.25, 0.75])}
    first, second = response_rows(prompts, models, [0.5, 1 / 3])
    assert first["prompt"] == [{"role": "user", "content": "question 0"}]
    assert first["category"] is None
    assert first["references"] == ["answer 0: we are sorry today"]
    row = second["candidate"]
    assert row["answer"] == "answer 1: a replacement is sent"
    assert (row["reward"], row["held_out"], row["ended"], row["kl"]) == (0.1, 1.5, False, 0.333333)
    assert (row["training"], row["ground_truth"]) == ({"reward_model": 0.1}, {"rule": 0.75})
    assert "kl" not in next(response_rows(prompts, models, None))["candidate"]


def test_rounding_leaves_nothing_that_json_cannot_hold():
    found = rounded({"a": 0.12345678, "b": float("nan"), "c": {"d": [float("inf"), -0.0000001]}, "e": 7, "f": None})
    assert (
        json.dumps(found, allow_nan=False) == '{"a": 0.123457, "b": null, "c": {"d": [null, 0.0]}, "e": 7, "f": null}'
    )
