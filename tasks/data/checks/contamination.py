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
_TEXTS_AT_ONCE = 1024
_WORDS_REMEMBERED = 2**18
Hashes = npt.NDArray[np.uint64]


class Question(NamedTuple):
    """A test prompt: the number of its row, and the user's messages in it."""

    number: int
    asked: list[str]


class Study(NamedTuple):
    """A training row: its number, the user's messages in it, and all its texts."""

    number: int
    asked: list[str]
    texts: list[str]


class _Text(NamedTuple):
    """A text of a training row."""

    study: int
    asked: bytes  # what the row's user asks, as `_key` gives it
    text: str


class _Runs:
    """The runs of one length to look for, each with the first test prompt that holds it."""

    def __init__(self, hashes: Hashes, questions: npt.NDArray[np.int64]) -> None:
        self._hashes, first = np.unique(hashes, return_index=True)
        self._questions = questions[first]
        # Most runs are unlike all these: eight places or more to each keep those that must be looked up few.
        self._mask = np.uint64(2 ** (len(self._hashes).bit_length() + 3) - 1)
        self._known = np.zeros(int(self._mask) + 1, dtype=bool)
        self._known[self._hashes & self._mask] = True

    def find(self, hashes: Hashes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Give the places of the hashes that are known, and the test prompts that hold them."""
        likely = np.flatnonzero(self._known[hashes & self._mask])
        found = np.searchsorted(self._hashes, hashes[likely]).clip(max=len(self._hashes) - 1)
        is_known = self._hashes[found] == hashes[likely]
        return likely[is_known], self._questions[found[is_known]]


def find_contamination(questions: Iterable[Question], studies: Iterable[Study]) -> dict[int, int]:
    """Find the training rows that give a test prompt away: the number of such a row, and that of the prompt.

    Both are read once, one after the other; of the test prompts hashes are held, of the training rows what is found.
    """
    vocabulary = _Vocabulary()
    whole: dict[bytes, int] = {}
    runs = _test_runs(_with_whole_questions(questions, whole), vocabulary)
    found: dict[int, int] = {}
    shared: dict[tuple[int, int], int] = {}  # a study and a run in it: the test prompt
    askers: dict[int, set[bytes]] = defaultdict(set)  # of a run: what the users of training rows ask
    texts = _texts(studies, whole, found)
    while some := list(islice(texts, _TEXTS_AT_ONCE)):
        for place, run, question in _shared_runs(runs, [each.text for each in some], vocabulary):
            if len(askers[run]) <= COMMON:
                askers[run].add(some[place].asked)
                shared.setdefault((some[place].study, run), question)
    for (study, run), question in shared.items():
        if len(askers[run]) <= COMMON:
            found.setdefault(study, question)
    return found


def _with_whole_questions(questions: Iterable[Question], whole: dict[bytes, int]) -> Iterator[Question]:
    """Note what is asked in all, for the questions that only that gives away."""
    for question in questions:
        if key := _key(question.asked):
            whole.setdefault(key, question.number)
        yield question


def _texts(studies: Iterable[Study], whole: dict[bytes, int], found: dict[int, int]) -> Iterator[_Text]:
    """All texts of the training rows; rows that ask what a test prompt asks are found on the way."""
    for study in studies:
        key = _key(study.asked)
        if key in whole:
            found[study.number] = whole[key]
        yield from (_Text(study.number, key, text) for text in study.texts)


class _Vocabulary(dict[str, int]):
    """Words to 64-bit numbers that are the same in every process, which Python's own hash is not."""

    def __missing__(self, word: str) -> int:
        self[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") | 1
        return self[word]

    def numbers(self, text: str) -> list[int]:
        if len(self) > _WORDS_REMEMBERED:
            self.clear()
        return [self[word] for word in _words(text)]


def _words(text: str) -> list[str]:
    if text.isascii():  # the same, three times as fast
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _key(messages: Iterable[str]) -> bytes:
    """A hash of the words of some messages; nothing where there are none."""
    words = " ".join(word for message in messages for word in _words(message))
    return hashlib.blake2b(words.encode(), digest_size=16).digest() if words else b""


def _test_runs(questions: Iterable[Question], vocabulary: _Vocabulary) -> dict[int, _Runs]:
    """The runs of words to look for, by their length: those of 13 words, and whole messages of 8 to 12."""
    found: dict[int, list[tuple[Hashes, npt.NDArray[np.int64]]]] = defaultdict(list)
    messages = ((question.number, message) for question in questions for message in question.asked)
    while some := list(islice(messages, _TEXTS_AT_ONCE)):
        numbers = np.array([number for number, _ in some])
        flat, ends, owners = _laid_out([message for _, message in some], vocabulary)
        lengths = np.diff(ends, prepend=0)
        for length, hashes in _run_hashes(flat, LONGEST_RUN):
            owner = owners[: len(hashes)]
            is_within = np.arange(len(hashes)) + length <= ends[owner]
            wanted = np.flatnonzero(is_within & ((length == LONGEST_RUN) | (lengths[owner] == length)))
            found[length].append((hashes[wanted], numbers[owners[wanted]]))
    runs = {length: [np.concatenate(column) for column in zip(*parts, strict=True)] for length, parts in found.items()}
    return {length: _Runs(hashes, held) for length, (hashes, held) in runs.items() if len(hashes)}


def _laid_out(
    texts: Sequence[str], vocabulary: _Vocabulary
) -> tuple[Hashes, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The words of texts as numbers, end to end; where each text ends; and the text that each word is of."""
    numbers = [vocabulary.numbers(text) for text in texts]
    lengths = np.array([len(each) for each in numbers])
    flat = np.array([number for each in numbers for number in each], dtype=np.uint64)
    return flat, np.cumsum(lengths), np.repeat(np.arange(len(texts)), lengths)


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


def _shared_runs(
    runs: dict[int, _Runs], texts: Sequence[str], vocabulary: _Vocabulary
) -> Iterator[tuple[int, int, int]]:
    """Every run of a test prompt in some texts: the place of the text, the run's hash, the test prompt."""
    if not runs:
        return
    flat, ends, owners = _laid_out(texts, vocabulary)
    for length, hashes in _run_hashes(flat, LONGEST_RUN):
        if length in runs:
            starts, questions = runs[length].find(hashes)
            within = starts + length <= ends[owners[starts]]
            columns = (owners[starts], hashes[starts], questions)
            yield from zip(*(column[within].tolist() for column in columns), strict=True)
