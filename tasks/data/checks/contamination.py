"""Evaluation contamination: test prompts that training rows give away.

A training row is contaminated where what its user asks is, word for word, a test prompt; or where any of its texts
shares a run of 13 words with a user's message of a test prompt (Brown et al. 2020, appendix C). A message of 8 to 12
words must be shared whole. Words are compared without case and punctuation. A run that more than 10 different training
prompts hold is a common phrase or a template, and does not count.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LONGEST_RUN, SHORTEST_RUN, COMMON = 13, 8, 10
# Thai, Japanese and Chinese are written without spaces: there a character is a word.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_FILTER_BITS = 22
_TEXTS_AT_ONCE = 4096
Hashes = npt.NDArray[np.uint64]


class Question(NamedTuple):
    """A test prompt: where it stands, and the user's messages in it."""

    place: str
    asked: list[str]


class Study(NamedTuple):
    """A training row: the user's messages in it, and all its texts."""

    asked: list[str]
    texts: list[str]


class _Shared(NamedTuple):
    """A run of words that a training row shares with a test prompt."""

    study: int
    run: int


def find_contamination(questions: Sequence[Question], studies: Sequence[Study]) -> list[str | None]:
    """For each training row, the place of a test prompt that it gives away, or None."""
    whole = {_joined(question.asked): question.place for question in reversed(questions)}
    whole.pop("", None)
    asked = [_joined(study.asked) for study in studies]
    found = [whole.get(key) for key in asked]
    vocabulary = _Vocabulary()
    runs = _test_runs(questions, vocabulary)
    for study, run in _uncommon(_shared_runs(runs, studies, vocabulary), asked):
        found[study] = found[study] or runs[run]
    return found


class _Vocabulary(dict[str, int]):
    """Words to 64-bit numbers that are the same in every process, which Python's own hash is not."""

    def __missing__(self, word: str) -> int:
        self[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") | 1
        return self[word]

    def numbers(self, text: str) -> list[int]:
        return [self[word] for word in _words(text)]


def _words(text: str) -> list[str]:
    if text.isascii():  # the same, three times as fast
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _joined(messages: Iterable[str]) -> str:
    return " ".join(word for message in messages for word in _words(message))


def _test_runs(questions: Sequence[Question], vocabulary: _Vocabulary) -> dict[int, str]:
    """Hashes of the runs of words to look for, with the place of the first test prompt that holds each."""
    runs: dict[int, str] = {}
    for question in questions:
        for message in question.asked:
            numbers = vocabulary.numbers(message)
            if len(numbers) >= SHORTEST_RUN:
                length = min(len(numbers), LONGEST_RUN)
                *_, (_, hashes) = _run_hashes(np.array(numbers, dtype=np.uint64), length)
                for value in hashes.tolist():
                    runs.setdefault(value, question.place)
    return runs


def _run_hashes(numbers: Hashes, longest: int) -> Iterator[tuple[int, Hashes]]:
    """Hashes of all runs of 8 to `longest` words, by the run's length.

    The hash of words w_0 .. w_(n-1) is n + sum_k w_k B^(k+1) modulo 2^64, with an odd constant B.
    """
    base, factor = 0x9E3779B97F4A7C15, 1
    hashes = np.zeros(len(numbers), dtype=np.uint64)
    for length in range(1, min(longest, len(numbers)) + 1):
        factor = factor * base % 2**64
        starts = len(numbers) - length + 1
        hashes = hashes[:starts] + numbers[length - 1 :] * np.uint64(factor)
        if length >= SHORTEST_RUN:
            yield length, hashes + np.uint64(length)


def _shared_runs(runs: dict[int, str], studies: Sequence[Study], vocabulary: _Vocabulary) -> Iterator[_Shared]:
    """Every run of a test prompt in every training row, a few thousand texts at a time."""
    known = np.zeros(2**_FILTER_BITS, dtype=bool)
    known[[run & (2**_FILTER_BITS - 1) for run in runs]] = True
    texts = ((index, text) for index, study in enumerate(studies) for text in study.texts)
    while runs and (some := list(islice(texts, _TEXTS_AT_ONCE))):
        numbers = [vocabulary.numbers(text) for _, text in some]
        lengths = np.array([len(each) for each in numbers])
        flat = np.array([number for each in numbers for number in each], dtype=np.uint64)
        ends, owners = np.cumsum(lengths), np.repeat(np.arange(len(some)), lengths)
        for length, hashes in _run_hashes(flat, LONGEST_RUN):
            likely = np.flatnonzero(known[hashes & np.uint64(2**_FILTER_BITS - 1)])
            for start in likely[likely + length <= ends[owners[likely]]].tolist():
                if (run := int(hashes[start])) in runs:
                    yield _Shared(some[owners[start]][0], run)


def _uncommon(shared: Iterable[_Shared], asked: Sequence[str]) -> Iterator[_Shared]:
    """Without the runs that many different training prompts hold."""
    holders: dict[int, set[str]] = defaultdict(set)
    kept = list(dict.fromkeys(shared))
    for study, run in kept:
        holders[run].add(asked[study])
    return (one for one in kept if len(holders[one.run]) <= COMMON)
