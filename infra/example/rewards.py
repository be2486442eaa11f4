"""The built-in example's rule for what is a good answer: a reward function like any that you write.

A customer names a problem and an order; a good answer offers the one right remedy, copies the order number, is
courteous and brief, and promises nothing the shop cannot keep. Nothing is trained on it: it shows whether training
on the annotators' choices has made answers better.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

PRODUCTS = ("lamp", "kettle", "radio", "jacket", "phone", "chair", "watch", "toaster")


class Problem(NamedTuple):
    """What customers say of a problem, the remedy it deserves, and how any remedy of that kind is recognised."""

    name: str
    complaints: tuple[str, ...]
    remedy: str
    mention: re.Pattern[str]


PROBLEMS = (
    Problem(
        "damaged",
        ("the {product} arrived broken", "my {product} came damaged", "the {product} does not work"),
        "send a replacement",
        re.compile(r"\breplac\w*"),
    ),
    Problem(
        "late",
        ("the {product} has not arrived", "my {product} is late", "I still wait for my {product}"),
        "send the tracking link",
        re.compile(r"\btrack\w*"),
    ),
    Problem(
        "wrong item",
        ("I got a wrong {product}", "this {product} is not the one I chose", "you sent me another {product}"),
        "arrange an exchange",
        re.compile(r"\b(?:exchang|swap)\w*"),
    ),
    Problem(
        "charged twice",
        ("I was charged twice for the {product}", "I paid two times for my {product}"),
        "issue a refund",
        re.compile(r"\b(?:refund\w*|money back)"),
    ),
    Problem(
        "not wanted",
        ("I want to give the {product} back", "I do not need the {product} any more"),
        "send a return label",
        re.compile(r"\breturn\w*"),
    ),
)
QUESTIONS = (
    "Order #{number}: {complaint}. Please help.",
    "Hello, {complaint}. My order is #{number}.",
    "About order #{number}, {complaint}. What now?",
    "Hi, {complaint}. It is order #{number}. Can you help?",
)

COURTEOUS = ("We are sorry for the trouble.", "Thank you for writing to us.", "Please excuse the trouble.")
EFFUSIVE = ("Oh dear, we are so very sorry!", "Dear friend, thank you so very much!")
RUDE = ("That is your own fault.", "Stop bothering us.", "What a silly question.")
OFFERS = ("We will {remedy} for order #{number}.", "For order #{number} we will {remedy}.")
NUMBERLESS_OFFERS = ("We will {remedy}.", "For your order we will {remedy}.")
FAREWELLS = ("", "Kind regards.", "Have a nice day.", "Your service team.")
PROMISES = ("It arrives tomorrow.", "Success is guaranteed.", "Your next order is free for life.")
RAMBLES = (
    "As you may know, our shop is old and our team likes to read all that our customers write to us.",
    "There are many shops in the city, but ours has been here for many years and will be for many more.",
)

LONGEST, SHORTEST = 24, 6  # words
UNKNOWN_WORDS = 0.2  # share above which a text counts as garbage
APOLOGY = re.compile(r"\b(?:sorry|apolog\w+|thank\w*|please|glad to help|happy to help)\b")
INSULT = re.compile(r"\b(?:your own fault|stop|silly|stupid|bother\w*|idiot|nonsense|shut up)\b")
PROMISE = re.compile(
    r"\b(?:tomorrow|today|immediately|instantly|guarante\w+|free|forever|for life|promise\w*|always)\b"
)
OFFER = re.compile(r"\b(?:we|i)(?:'ll| will| shall| can| have| are going to)\b")
REFUSAL = re.compile(r"\b(?:not|never|no|cannot|unable)\b|n't\b")
WORD, SENTENCE, NUMBER = re.compile(r"[a-z]+(?:'[a-z]+)?"), re.compile(r"[^.!?]+[.!?]+"), re.compile(r"\d+")
COMMON_WORDS = """a about again all also an and any are as at be been best but by can could did do does for from get
give glad had happy has have help here how i if in is issue it just kindly know let ll made make me more my need new
no not now of on one or our out please right shall ship shipped should soon sorry such that the their them then there
this to trouble us very want was we well were what when which will with would you your apologies apologise money
back label link number package parcel item problem customer team service thanks replace apologize"""


class Findings(NamedTuple):
    """What the rule finds: every field True is a perfect answer."""

    remedy: bool  # the right remedy is offered, once, and no other is named
    order: bool  # the order's number is given, once, and no other number
    courteous: bool
    brief: bool  # neither long nor a fragment, and nothing is repeated
    honest: bool  # no promise the shop cannot keep


class Question(NamedTuple):
    """A prompt and what its answer must respect."""

    text: str
    problem: Problem
    number: str


def score(prompts: Sequence[Sequence[dict[str, str]]], answers: Sequence[str]) -> list[float]:
    """Score every answer to the last turn of its prompt.

    Raises:
        ValueError: a prompt is not one of the example's.
    """
    return [score_of(prompt[-1]["content"], answer) for prompt, answer in zip(prompts, answers, strict=True)]


def score_of(prompt: str, response: str) -> float:
    """Score an answer from 0 to 1: remedy and number are the substance, each lapse of manner halves it.

    Raises:
        ValueError: the prompt is not one of the example's.
    """
    found = findings_of(prompt, response)
    substance = (0.0, 0.4, 1.0)[found.remedy + found.order]
    lapses = 3 - (found.courteous + found.brief + found.honest)
    return float(substance * 0.5**lapses)


def findings_of(prompt: str, response: str) -> Findings:
    """Judge a free text; what is no readable, finished text fails on every count.

    Raises:
        ValueError: the prompt is not one of the example's.
    """
    question = _understand(prompt)
    text = response.strip().lower()
    words, sentences = WORD.findall(text), [sentence.strip() for sentence in SENTENCE.findall(text)]
    if not _is_readable(text, words, sentences):
        return Findings(*[False] * len(Findings._fields))
    return Findings(
        remedy=_offers_only(question.problem, text, sentences),
        order=NUMBER.findall(text) == [question.number] and re.search(r"\border (?:number )?#?\d", text) is not None,
        courteous=bool(APOLOGY.search(text)) and not INSULT.search(text),
        brief=SHORTEST <= len(words) <= LONGEST and not _repeats(words),
        honest=not PROMISE.search(text),
    )


def _understand(prompt: str) -> Question:
    numbers = NUMBER.findall(prompt)
    problems = [problem for problem, complaint in COMPLAINTS if complaint.search(prompt)]
    if len(problems) != 1 or len(numbers) != 1:
        raise ValueError(f"not a prompt of the built-in example: {prompt!r}")
    return Question(prompt, problems[0], numbers[0])


def _is_readable(text: str, words: list[str], sentences: list[str]) -> bool:
    """Sentences from the first character to the last, in words that people use."""
    if not words or sum(len(sentence) for sentence in sentences) + len(sentences) - 1 != len(text):
        return False
    return sum(word not in LEXICON for word in words) <= UNKNOWN_WORDS * len(words)


def _offers_only(problem: Problem, text: str, sentences: list[str]) -> bool:
    """The right remedy is named once, in a sentence that offers it, and no other remedy is named."""
    named = [other for other in PROBLEMS for _ in other.mention.findall(text)]
    offered = any(
        problem.mention.search(part) and OFFER.search(part) and not REFUSAL.search(part) for part in sentences
    )
    return named == [problem] and offered


def _repeats(words: list[str]) -> bool:
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) < len(triples)


COMPLAINTS = [
    (problem, re.compile(complaint.format(product=f"(?:{'|'.join(PRODUCTS)})") + r"\b"))
    for problem in PROBLEMS
    for complaint in problem.complaints
]
LEXICON = frozenset(
    WORD.findall(
        " ".join(
            [*PRODUCTS, *QUESTIONS, *COURTEOUS, *EFFUSIVE, *RUDE, *OFFERS, *FAREWELLS, *PROMISES, *RAMBLES]
            + [text for problem in PROBLEMS for text in (*problem.complaints, problem.remedy)]
            + [COMMON_WORDS]
        ).lower()
    )
)
