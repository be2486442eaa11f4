"""Sentiment: continue a film review so that it is positive, with the sentences of Rotten Tomatoes (Pang & Lee 2005).

Rows for every kind, and `positive`, a judge of another kind than the models here: words counted by TF-IDF, weighed by
logistic regression. Each sentence serves once: in a pair, as a demonstration, as a prompt, or for the judge.

The data are three files of rows {"text": ..., "label": 1 or 0}, named in FILES, in a folder of the user's.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

LICENSE = "cc-by-4.0"

FILES = tuple(f"rotten_tomatoes_{part}.jsonl" for part in ("train", "val", "test"))
SYSTEM, REQUEST = "Film review", "Continue this review: "
SHORTEST, LONGEST = 9, 22  # words of a sentence that is no judge's
OPENING = 4  # words of an opening; those of a pair share so many, or fewer down to SHORTEST_SHARED
SHORTEST_SHARED = 2
DEMONSTRATIONS, PROMPTS = 800, 1200


class Review(NamedTuple):
    """A sentence of a review."""

    text: str
    positive: bool

    def parts(self, words: int) -> tuple[str, str]:
        """Split it into its first words and the rest."""
        found = self.text.split()
        return " ".join(found[:words]), " ".join(found[words:])


class Pair(NamedTuple):
    """A positive and a negative sentence that begin with the same words."""

    opening: str
    positive: str
    negative: str


class Shares(NamedTuple):
    """What each sentence serves for."""

    pairs: list[Pair]
    demonstrations: list[Review]
    prompts: list[Review]
    judge: list[Review]


def demonstrations(seed: int, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield continuations of both kinds, whatever the seed."""
    for review in shares(**options).demonstrations:
        opening, rest = review.parts(OPENING)
        yield {"prompt": _prompt(opening), "response": rest}


def preferences(seed: int, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield pairs in which the positive continuation is the chosen one, whatever the seed."""
    for pair in shares(**options).pairs:
        yield {"prompt": _prompt(pair.opening), "chosen": pair.positive, "rejected": pair.negative}


def ratings(seed: int, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the continuations of the pairs one by one, the positive ones as good, whatever the seed."""
    for pair in shares(**options).pairs:
        yield {"prompt": _prompt(pair.opening), "response": pair.positive, "label": True}
        yield {"prompt": _prompt(pair.opening), "response": pair.negative, "label": False}


def prompts(seed: int, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield openings of both kinds, whatever the seed; only a positive continuation is a reference."""
    for review in shares(**options).prompts:
        opening, rest = review.parts(OPENING)
        yield {"prompt": _prompt(opening), "references": [rest] if review.positive else []}


def positive(prompts: Sequence[Sequence[Mapping[str, str]]], answers: Sequence[str], folder: str) -> list[float]:
    """Give 1 where the judge finds opening and answer together positive, else 0."""
    texts = [
        f"{prompt[-1]['content'].removeprefix(REQUEST)} {answer}"
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return [float(found) for found in judge(folder).predict(texts)]


@lru_cache(maxsize=1)
def judge(folder: str) -> Pipeline:
    """Fit the judge on the sentences that serve for nothing else."""
    learned = shares(folder).judge
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_pipeline(vectors, LogisticRegression(C=5.0, solver="liblinear", random_state=0)).fit(
        [review.text for review in learned], [review.positive for review in learned]
    )


@lru_cache(maxsize=1)
def shares(folder: str) -> Shares:
    """Divide the sentences among their uses, the same way every time."""
    reviews = sorted(_read(Path(folder)), key=lambda review: hashlib.sha256(review.text.encode()).digest())
    short = [review for review in reviews if SHORTEST <= len(review.text.split()) <= LONGEST]
    pairs, paired = _pairs(short)
    openings = Counter(review.parts(OPENING)[0] for review in reviews)
    single = [review for review in short if review.text not in paired and openings[review.parts(OPENING)[0]] == 1]
    shown, asked = single[:DEMONSTRATIONS], single[DEMONSTRATIONS : DEMONSTRATIONS + PROMPTS]
    used = paired | {review.text for review in (*shown, *asked)}
    return Shares(pairs, shown, asked, [review for review in reviews if review.text not in used])


def _pairs(reviews: Sequence[Review]) -> tuple[list[Pair], set[str]]:
    """Pair sentences of either kind, those that share most words first; give the sentences used, too."""
    pairs: list[Pair] = []
    used: set[str] = set()
    for words in range(OPENING, SHORTEST_SHARED - 1, -1):
        found: dict[str, dict[bool, list[Review]]] = defaultdict(lambda: {True: [], False: []})
        for review in reviews:
            if review.text not in used:
                found[review.parts(words)[0]][review.positive].append(review)
        for opening, of_kind in found.items():
            for good, bad in zip(of_kind[True], of_kind[False], strict=False):
                pairs.append(Pair(opening, good.parts(words)[1], bad.parts(words)[1]))
                used |= {good.text, bad.text}
    return pairs, used


def _read(folder: Path) -> list[Review]:
    lines = [line for name in FILES for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    rows = map(json.loads, lines)
    return list(dict.fromkeys(Review(row["text"].strip(), bool(row["label"])) for row in rows))


def _prompt(opening: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{REQUEST}{opening}"}]
