from types import SimpleNamespace

import nltk.corpus
import numpy as np
import pytest

from tasks.evaluation.metrics import (
    corpus_overlap,
    distinct,
    is_refusal,
    likenesses,
    mean,
    meteor_variant,
    repetition,
    standard_error,
    words,
)


@pytest.fixture
def no_wordnet(monkeypatch):
    """As on a machine without the corpus."""
    monkeypatch.setattr(nltk.corpus, "wordnet", SimpleNamespace(ensure_loaded=lost))


def lost():
    raise LookupError


def likeness(text, *references):
    (found,) = likenesses([text], [list(references)])
    assert found is not None
    return found


def test_bleu_and_chrf_equal_the_example_in_the_documentation_of_sacrebleu():
    texts = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    overlap = corpus_overlap(texts, references)
    assert overlap is not None
    assert round(overlap.bleu, 2) == 48.53
    assert round(overlap.chrf, 2) == 59.73
    assert "nrefs:2" in overlap.bleu_signature
    assert "version:" in overlap.chrf_signature


def test_bleu_of_one_swapped_word_by_hand():
    # 1- to 4-grams that match: 5/6, 4/5, 3/4, 2/3, no brevity penalty; (5/6 * 4/5 * 3/4 * 2/3)^(1/4) = (1/3)^(1/4)
    overlap = corpus_overlap(["a b c d e x"], [["a b c d e f"]])
    assert overlap is not None
    assert overlap.bleu == pytest.approx(100 * (1 / 3) ** 0.25)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but as an AI language model I do not do this.", True),
        ("Sorry, I cannot provide the address.", True),
        ("  I am unable to answer this.", True),
        ("I won't write that.", True),
        ("We are sorry for the trouble. We will send a replacement.", False),
        ("I'm sorry to hear that. Try to restart it.", False),
        ("I can't wait to see it!", False),
        ("You might say: I cannot help.", False),
        ("", False),
    ],
)
def test_refusals_are_known_by_how_they_begin(text, expected):
    assert is_refusal(text) == expected


def test_prompts_without_references_are_left_out_of_the_overlap():
    with_gap = corpus_overlap(["the cat sat on the mat", "anything"], [["the cat sat on the mat"], []])
    assert with_gap is not None
    assert with_gap.bleu == pytest.approx(100)
    assert corpus_overlap(["anything"], [[]]) is None
    assert likenesses(["anything"], [[]]) == [None]


def test_answers_may_have_different_numbers_of_references():
    overlap = corpus_overlap(["a b c d", "e f g h"], [["x"], ["x", "y", "e f g h"]])
    assert overlap is not None
    assert "nrefs:var" in overlap.bleu_signature


def test_rouge_equals_the_example_in_the_documentation_of_rouge_score():
    # Of 8 and 9 words: 6 in common, 2*6/17; pairs of 7 and 8: 2 (the quick, quick brown), 2*2/15; longest common
    # subsequence 5 (the quick brown jumps the), 2*5/17.
    found = likeness("The quick brown dog jumps on the log.", "The quick brown fox jumps over the lazy dog")
    assert found[:3] == pytest.approx((12 / 17, 4 / 15, 10 / 17))


def test_rouge_stems_and_takes_the_best_reference():
    assert likeness("we refunded orders", "nothing alike", "we refund order").rouge_1 == 1


@pytest.mark.usefixtures("no_wordnet")
@pytest.mark.parametrize(
    ("text", "score"),
    [
        # 6 matches in 1 chunk: 1 - 0.5 * (1/6)^3
        ("the cat sat on the mat", 1 - 0.5 / 216),
        # P 6/7, R 1: F = 10PR / (R + 9P); 6 matches in 2 chunks: penalty 0.5 * (2/6)^3
        ("the cat was sat on the mat", (60 / 7) / (1 + 54 / 7) * (1 - 0.5 / 27)),
        # "sits" does not stem to "sat": 5 matches of 6 and 6 in 2 chunks: F 5/6, penalty 0.5 * (2/5)^3
        ("the cat sits on the mat", 5 / 6 * (1 - 0.5 * 0.4**3)),
        ("wholly different words", 0),
    ],
)
def test_meteor_by_hand(text, score):
    assert likeness(text, "the cat sat on the mat").meteor == pytest.approx(score)


@pytest.mark.usefixtures("no_wordnet")
def test_meteor_matches_stems():
    # replaces and replacing share a stem: 2 matches in 1 chunk
    assert likeness("he replaces", "He replacing").meteor == pytest.approx(1 - 0.5 / 8)


@pytest.mark.usefixtures("no_wordnet")
def test_meteor_equals_the_example_in_the_documentation_of_nltk():
    text = "It is a guide to action which ensures that the military always obeys the commands of the party"
    reference = "It is a guide to action that ensures that the military will forever heed Party commands"
    assert round(likeness(text, reference).meteor, 4) == 0.6944


def test_meteor_matches_synonyms_where_the_corpus_is(monkeypatch):
    lemmas = [SimpleNamespace(name=lambda: "car"), SimpleNamespace(name=lambda: "auto")]
    synsets = {"car": [SimpleNamespace(lemmas=lambda: lemmas)]}
    corpus = SimpleNamespace(ensure_loaded=lambda: None, synsets=lambda word: synsets.get(word, []))
    monkeypatch.setattr(nltk.corpus, "wordnet", corpus)
    assert meteor_variant() == "exact+stem+synonym"
    # 3 matches of 3 and 3 in 1 chunk: 1 - 0.5 * (1/3)^3
    assert likeness("the car stops", "the auto stops").meteor == pytest.approx(1 - 0.5 / 27)


@pytest.mark.usefixtures("no_wordnet")
def test_meteor_without_the_corpus_says_so():
    assert meteor_variant() == "exact+stem"
    # 2 matches of 3 and 3 in 2 chunks: F 2/3, penalty 0.5 * (2/2)^3
    assert likeness("the car stops", "the auto stops").meteor == pytest.approx(1 / 3)


def test_words_are_lower_case_and_punctuation_stands_alone():
    assert words("Sorry, order #12!") == ["sorry", ",", "order", "#", "12", "!"]


def test_distinct_by_hand():
    # words: a b a, a c -> 3 of 5; pairs: ab ba ac -> 3 of 3
    assert distinct(["a b a", "a c"], 1) == pytest.approx(3 / 5)
    assert distinct(["a b a", "a c"], 2) == 1
    assert distinct(["a", ""], 2) is None


def test_repetition_by_hand():
    # 4-grams of "a b a b a b": abab, baba, abab -> 1 of 3 was there before
    assert repetition("a b a b a b") == pytest.approx(1 / 3)
    assert repetition("a b c d e") == 0
    assert repetition("too short") == 0


def test_mean_and_standard_error_by_hand():
    # 1, 2, 3: variance 1, so sqrt(1/3)
    assert mean([1, 2, 3]) == 2
    assert standard_error([1, 2, 3]) == pytest.approx(3**-0.5)
    assert mean([]) is None
    assert standard_error([1]) is None
    # two groups of two, 1 1 and 3 3: sums of differences from the mean 2 are -2 and 2: sqrt(2/1 * 8) / 4 = 1
    assert standard_error([1, 3, 1, 3], np.array([0, 1, 0, 1])) == pytest.approx(1.0)
    assert standard_error([1, 2], np.array([0, 0])) is None


def test_empty_answers_are_no_error():
    assert likeness("", "a reference") == (0, 0, 0, 0)
    overlap = corpus_overlap([""], [["a reference"]])
    assert overlap is not None
    assert overlap.bleu == 0
