import json

import pytest

from tasks.data.records import Message, Prompt
from tasks.judging.best_of import BestOf
from tasks.judging.compare import Resampling
from tasks.judging.metrics import Answers
from tasks.judging.summary import measure, rounded, rows, summarise

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


def make_answers(count, reward=0.0, more="", ended=True):
    texts = [f"answer {number}: {WORDS[number % 4]}{more}" for number in range(count)]
    lengths = [len(text.split()) for text in texts]
    return Answers(texts, lengths, [ended] * count, [reward + number / 10 for number in range(count)])


def compare(candidate, sft, references=True, gold=None, kl=None):
    prompts = make_prompts(len(sft.texts), references)
    models = {
        "opponent": measure(prompts, sft, sft.rewards, gold),
        "candidate": measure(prompts, candidate, candidate.rewards, gold),
    }
    models["sft"] = models["opponent"]
    return summarise(
        prompts,
        models,
        kl or [0.5] * len(prompts),
        perplexity={"candidate": 2.0, "sft": None},
        best_of_sft=[BestOf(2, 0.2, {"reward": [1.0, 2.0]}, {"reward": [0.5, 1.0]})],
        marks=[],
        resampling=RESAMPLING,
    )


def test_a_policy_equal_to_sft_neither_wins_nor_loses():
    found = compare(make_answers(12), make_answers(12))
    expected = {"value": 0.5, "low": 0.5, "high": 0.5, "ties": 1.0, "wins": 0, "losses": 0}
    told = {"sign_test": 1.0, "verdict": "inconclusive", "prompts_to_settle": None}
    assert found["win_rate"]["vs_sft"] == expected | told
    assert found["length_controlled_win_rate"]["vs_sft"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert found["difference"]["vs_sft"]["reward"] == {"value": 0, "low": 0, "high": 0}
    assert found["candidate"] == found["sft"] == found["opponent"]


def test_a_better_policy_wins_every_prompt():
    found = compare(make_answers(12, reward=1.0, more=" today"), make_answers(12))
    assert found["win_rate"]["vs_opponent"]["value"] == 1
    assert found["win_rate"]["vs_opponent"]["verdict"] == "better"
    # every reward one higher, every answer one word longer
    assert found["difference"]["vs_sft"]["reward"] == {"value": 1, "low": 1, "high": 1}
    assert found["difference"]["vs_sft"]["length"] == {"value": 1, "low": 1, "high": 1}
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
    assert found["methods"]["bleu"] is None
    assert "gold" not in found


def test_one_prompt_has_no_standard_error():
    assert compare(make_answers(1), make_answers(1), kl=[0.3])["kl"] == {"mean": 0.3, "standard_error": None}


def test_gold_is_compared_by_prompt():
    def gold(prompt, text):
        assert prompt.startswith("question")
        return float("today" in text)

    found = compare(make_answers(6, more=" today"), make_answers(6), gold=gold)["gold"]
    assert (found["candidate"], found["sft"]) == (1, 0)
    assert found["vs_sft"] == {"value": 1, "low": 1, "high": 1, "verdict": "better"}


def test_best_of_n_is_a_mean_over_prompts():
    [found] = compare(make_answers(5), make_answers(5))["best_of_sft"]
    assert (found["n"], found["kl"]) == (2, 0.2)
    assert found["reward"] == {"value": 1.5, "low": 1.0, "high": 2.0}
    assert found["win_rate"]["reward"] == {"value": 0.75, "low": 0.5, "high": 1.0}


def test_reruns_give_the_same_bytes():
    texts = {json.dumps(compare(make_answers(20, reward=0.01), make_answers(20)), allow_nan=False) for _ in range(2)}
    assert len(texts) == 1


def test_rows_hold_what_a_person_wants_to_read():
    prompts = make_prompts(2)
    models = {"candidate": measure(prompts, make_answers(2, ended=False), [0.5, 1.5], lambda *_: 0.25)}
    first, second = rows(prompts, models, [0.5, 1 / 3])
    assert first["prompt"] == [{"role": "user", "content": "question 0"}]
    assert first["category"] is None
    assert first["references"] == ["answer 0: we are sorry today"]
    said = second["candidate"]
    assert said["answer"] == "answer 1: a replacement is sent"
    assert (said["reward"], said["gold"], said["ended"], said["kl"]) == (0.1, 0.25, False, 0.333333)
    assert "kl" not in next(rows(prompts, models, None))["candidate"]


def test_rounding_leaves_nothing_that_json_cannot_hold():
    found = rounded({"a": 0.12345678, "b": float("nan"), "c": {"d": [float("inf"), -0.0000001]}, "e": 7, "f": None})
    assert (
        json.dumps(found, allow_nan=False) == '{"a": 0.123457, "b": null, "c": {"d": [null, 0.0]}, "e": 7, "f": null}'
    )
