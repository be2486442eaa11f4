"""Figures of one model's answers: how near they are to references, how varied, how long, how well ended.

Overlap figures come from the usual libraries, so that they compare with published ones; the others are defined here.
None stands for a figure that cannot be computed.
"""

import re
from collections.abc import Sequence
from itertools import islice, zip_longest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+|[^\w\s]")
# How assistants decline, at the beginning of an answer. English only.
REFUSAL = re.compile(
    r"\W*((i'm |i am )?(very |so )?sorry,? (but )?)?"
    r"(as an ai\b|i must decline|(i (can't|cannot|won't|will not)|i'm (unable|not able) to|i am (unable|not able) to)"
    r" (help|assist|answer|provide|comply|do that|fulfil|support|give|create|write|discuss|share|engage))",
    re.IGNORECASE,
)


class Answers(NamedTuple):
    """The answers of one model to n prompts, in their order."""

    texts: list[str]  # without special tokens
    lengths: list[int]  # tokens, the end of sequence included
    ended: list[bool]  # the model ended the answer itself, before the limit


class Likeness(NamedTuple):
    """How like its best reference one answer is; each in [0, 1]."""

    rouge_1: float
    rouge_2: float
    rouge_l: float
    meteor: float


class CorpusOverlap(NamedTuple):
    """Overlap of all answers with their references, in percent, with the signatures that make it reproducible."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


def words(text: str) -> list[str]:
    """Split a text into lower-case words and single punctuation marks."""
    return WORD.findall(text.lower())


def likenesses(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[Likeness | None]:
    """ROUGE F1 (Lin 2004, Porter stemmer) and METEOR (Lavie and Agarwal 2007) of each answer.

    Args:
        texts: n answers.
        references: n lists; the best reference counts, for each figure its own. Empty: the answer's place holds None.
    """
    from nltk.translate.meteor_score import meteor_score
    from rouge_score.rouge_scorer import RougeScorer

    rouge, synonyms = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True), _synonyms()

    def likeness(text: str, own: Sequence[str]) -> Likeness:
        scores = rouge.score_multi(own, text)
        meteor = meteor_score([words(reference) for reference in own], words(text), wordnet=synonyms)
        rouge_1, rouge_2, rouge_l = (float(scores[kind].fmeasure) for kind in ("rouge1", "rouge2", "rougeL"))
        return Likeness(rouge_1, rouge_2, rouge_l, float(meteor))

    return [likeness(text, own) if own else None for text, own in zip(texts, references, strict=True)]


def corpus_overlap(texts: Sequence[str], references: Sequence[Sequence[str]]) -> CorpusOverlap | None:
    """BLEU (Papineni 2002) and chrF (Popović 2015) of all answers that have references, by sacrebleu.

    Args:
        texts: n answers.
        references: n lists, of any lengths; answers whose list is empty are left out. None where all are.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    pairs = [(text, own) for text, own in zip(texts, references, strict=True) if own]
    if not pairs:
        return None
    answers = [text for text, _ in pairs]
    # sacrebleu wants the first reference of every answer, then the second ...; None where there is none.
    streams = [list(stream) for stream in zip_longest(*(own for _, own in pairs))]
    bleu, chrf = BLEU(), CHRF()
    figures = bleu.corpus_score(answers, streams).score, chrf.corpus_score(answers, streams).score
    return CorpusOverlap(*figures, str(bleu.get_signature()), str(chrf.get_signature()))


def meteor_variant() -> str:
    """Name the matches that METEOR makes on this machine: synonyms only where WordNet is installed."""
    return "exact+stem" if isinstance(_synonyms(), _NoSynonyms) else "exact+stem+synonym"


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams of words over all n-grams of words, in all answers together (Li et al. 2016, distinct-n)."""
    grams = [gram for text in texts for gram in _ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def repetition(text: str, n: int = 4) -> float:
    """Share of an answer's n-grams of words that were there before (Welleck et al. 2020, seq-rep-n).

    An answer too short to hold an n-gram repeats nothing.
    """
    grams = _ngrams(words(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def is_refusal(text: str) -> bool:
    """Whether an answer begins as a refusal to answer does, in English."""
    return REFUSAL.match(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) is not None


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    return float(np.mean(values)) if len(values) else None


def standard_error(values: Sequence[float], groups: NDArray[np.int64] | None = None) -> float | None:
    """Standard error of the mean; None of fewer than two values, or groups.

    Args:
        values: n.
        groups: (n,) the group of each, from 0, within which values are not independent; None where all are.
    """
    if groups is None:
        return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    figures = np.asarray(values, dtype=np.float64)
    sums = np.bincount(groups, figures - figures.mean())
    count = len(sums)
    return float(np.sqrt(count / (count - 1) * (sums**2).sum()) / len(figures)) if count > 1 else None


def _ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(islice(tokens, start, None) for start in range(n)), strict=False))


class _NoSynonyms:
    """Stands in for WordNet where the corpus is absent: no word has a synonym."""

    def synsets(self, _word: str) -> tuple[()]:
        return ()


def _synonyms() -> Any:  # noqa: ANN401 (nltk is not typed)
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:  # the corpus is not part of the package, and nothing is downloaded here
        return _NoSynonyms()
    return wordnet
