"""The ground truth of the example: a rule that scores a customer-support answer. Nothing learns from it.

A file of reward functions stands alone: it is loaded from its path and imports only what is installed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# How a prompt states its problem, and how an answer names the one right remedy.
PROBLEMS = {
    "damaged": r"arrived broken|came damaged|does not work",
    "late": r"has not arrived|is late|still wait",
    "wrong item": r"wrong|not the one I chose|sent me another",
    "charged twice": r"charged twice|paid two times",
    "not wanted": r"give the \w+ back|do not need",
}
REMEDIES = {
    "damaged": r"\breplac\w*",
    "late": r"\btrack\w*",
    "wrong item": r"\b(?:exchang|swap)\w*",
    "charged twice": r"\b(?:refund\w*|money back)",
    "not wanted": r"\breturn\w*",
}
SHORTEST, LONGEST = 6, 24  # words
UNKNOWN_WORDS = 0.2  # share above which a text counts as garbage
APOLOGY = re.compile(r"\b(?:sorry|apolog\w+|thank\w*|please|glad to help|happy to help)\b")
INSULT = re.compile(r"\b(?:your own fault|stop|silly|stupid|bother\w*|idiot|nonsense|shut up)\b")
PROMISE = re.compile(
    r"\b(?:tomorrow|today|immediately|instantly|guarante\w+|free|forever|for life|promise\w*|always)\b"
)
OFFER = re.compile(r"\b(?:we|i)(?:'ll| will| shall| can| have| are going to)\b")
REFUSAL = re.compile(r"\b(?:not|never|no|cannot|unable)\b|n't\b")
ORDER = re.compile(r"\border (?:number )?#?\d")
WORD, SENTENCE, NUMBER = re.compile(r"[a-z]+(?:'[a-z]+)?"), re.compile(r"[^.!?]+[.!?]+"), re.compile(r"\d+")
KNOWN_WORDS = frozenset(
    WORD.findall(
        """
        a about again all also an and another any apologies apologise apologize are arrange arrived arrives as at
        back be been best bothering broken but by came can chair charged chose city complaint could customer
        customers damaged day dear did do does exchange excuse fault for free friend from get give glad got
        guaranteed had happy has have hello help here hi how i if in is issue it item jacket just kettle kind kindly
        know label lamp late let life likes link ll made make many may me money more much my need new next nice no
        not now number of oh old on one or order our ours out own package paid parcel phone please problem product
        question radio read refund regards remedy replace replacement return right send sent service shall ship
        shipped shop shops should silly so soon sorry still stop success such team thank thanks that the their them
        then there this times to toaster tomorrow tracking trouble twice two us very wait want was watch we well
        were what when which will with work would write writing wrong years you your
        """
    )
)


class Findings(NamedTuple):
    """What the rule finds in an answer: all True is a perfect one."""

    remedy: bool  # the right remedy is offered, once, and no other is named
    order: bool  # the order's number is given, once, and no other number
    courteous: bool
    brief: bool  # neither long nor a fragment, and nothing is repeated
    honest: bool  # no promise the shop cannot keep


def score(prompts: Sequence[Sequence[Mapping[str, str]]], answers: Sequence[str]) -> list[float]:
    """Score each answer to its prompt, whose last message is the customer's."""
    return [score_answer(prompt[-1]["content"], answer) for prompt, answer in zip(prompts, answers, strict=True)]


def score_answer(question: str, answer: str) -> float:
    """Score an answer from 0 to 1: remedy and number are the substance, each lapse of manner halves it.

    Raises:
        ValueError: the question is not one of the example's.
    """
    found = findings(question, answer)
    substance = (0.0, 0.4, 1.0)[found.remedy + found.order]
    lapses = 3 - (found.courteous + found.brief + found.honest)
    return float(substance * 0.5**lapses)


def findings(question: str, answer: str) -> Findings:
    """Apply the rule to a free text; what is no readable, finished text fails on every count.

    Raises:
        ValueError: the question is not one of the example's.
    """
    problem, number = understand(question)
    text = answer.strip().lower()
    words, sentences = WORD.findall(text), [sentence.strip() for sentence in SENTENCE.findall(text)]
    if not _is_readable(text, words, sentences):
        return Findings(*[False] * len(Findings._fields))
    return Findings(
        remedy=_offers_only(problem, text, sentences),
        order=NUMBER.findall(text) == [number] and ORDER.search(text) is not None,
        courteous=bool(APOLOGY.search(text)) and not INSULT.search(text),
        brief=SHORTEST <= len(words) <= LONGEST and not _repeats(words),
        honest=not PROMISE.search(text),
    )


def understand(question: str) -> tuple[str, str]:
    """Find the problem and the number of the order in a customer's question.

    Raises:
        ValueError: the question is not one of the example's.
    """
    numbers = NUMBER.findall(question)
    problems = [problem for problem, complaint in PROBLEMS.items() if re.search(rf"\b(?:{complaint})\b", question)]
    if len(problems) != 1 or len(numbers) != 1:
        raise ValueError(f"not a prompt of the example: {question!r}")
    return problems[0], numbers[0]


def _is_readable(text: str, words: list[str], sentences: list[str]) -> bool:
    """Sentences from the first character to the last, in words that people use."""
    if not words or sum(len(sentence) for sentence in sentences) + len(sentences) - 1 != len(text):
        return False
    return sum(word not in KNOWN_WORDS for word in words) <= UNKNOWN_WORDS * len(words)


def _offers_only(problem: str, text: str, sentences: list[str]) -> bool:
    """The right remedy is named once, in a sentence that offers it, and no other remedy is named."""
    named = [each for each, remedy in REMEDIES.items() for _ in re.findall(remedy, text)]
    offered = any(
        re.search(REMEDIES[problem], part) and OFFER.search(part) and not REFUSAL.search(part) for part in sentences
    )
    return named == [problem] and offered


def _repeats(words: list[str]) -> bool:
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) < len(triples)
