"""The built-in example: a customer-support task with a known rule for what is a good answer.

A customer names a problem and an order; a good answer offers the one right remedy, copies the order number, is
courteous and brief, and promises nothing the shop cannot keep. Demonstrations are of mixed quality. Pairs are
labelled by simulated annotators who mostly follow the rule, but have tastes of their own, so that a reward learned
from them can be gamed. The rule ("gold") is never trained on: it only shows whether a step has helped.
"""

import math
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tasks.settings.params import Example

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

FIRST_ORDER, LAST_ORDER = 100, 999

FAULTS = ("remedy", "order", "courteous", "brief", "honest")
# Chance that an answer of a pair has a fault; that one with a fault has a second; that a good opening is effusive.
FAULTY_IN_PAIRS, SECOND_FAULT, WARMTH = 0.5, 0.25, 0.25

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

# What the annotators' choice follows: the gold score's weight, then the tastes: a word more, an exclamation mark
# more, a promise more.
SHARPNESS = 8.0
AUTHOR = "author"  # whose demonstrations all are


class Annotator(NamedTuple):
    """The personal taste of one simulated annotator, in logits."""

    name: str
    per_word: float
    per_exclamation: float
    per_promise: float


ANNOTATORS = (
    Annotator("annotator-1", 0.0, 0.0, 0.0),
    Annotator("annotator-2", 0.03, 0.5, 0.0),
    Annotator("annotator-3", 0.06, 0.3, 0.5),
    Annotator("annotator-4", -0.02, 1.0, 0.0),
    Annotator("annotator-5", 0.0, 0.0, 1.0),
)


class GoldVerdict(NamedTuple):
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


def demonstrations(settings: Example, seed: int | str) -> Iterator[dict[str, Any]]:
    """Yield `settings.demonstrations` rows (prompt, response, annotator), a share `settings.faulty` with a fault."""
    chance = random.Random(f"{seed} demonstrations")
    for _ in range(settings.demonstrations):
        question = _question(chance)
        yield {"prompt": question.text, "response": _answer(chance, question, settings.faulty), "annotator": AUTHOR}


def preferences(settings: Example, seed: int | str) -> Iterator[dict[str, Any]]:
    """Yield `settings.preferences` rows (prompt, chosen, rejected, annotator), each labelled by one of the annotators.

    The two answers differ in gold score. An annotator prefers by the Bradley-Terry model (1952) on gold score plus
    own taste; then the label is flipped with chance `settings.label_noise`.
    """
    chance = random.Random(f"{seed} preferences")
    for _ in range(settings.preferences):
        question = _question(chance)
        first = second = _answer(chance, question, FAULTY_IN_PAIRS)
        while gold_score(question.text, second) == gold_score(question.text, first):
            second = _answer(chance, question, FAULTY_IN_PAIRS)
        annotator = chance.choice(ANNOTATORS)
        advantage = _appeal(annotator, question.text, first) - _appeal(annotator, question.text, second)
        prefers_first = chance.random() < 1 / (1 + math.exp(-advantage))
        flipped = chance.random() < settings.label_noise
        chosen, rejected = (first, second) if prefers_first != flipped else (second, first)
        yield {"prompt": question.text, "chosen": chosen, "rejected": rejected, "annotator": annotator.name}


def prompts(settings: Example, seed: int | str) -> Iterator[dict[str, Any]]:
    """Yield `settings.prompts` rows (prompt, references, category): flawless answers, and the customer's problem."""
    chance = random.Random(f"{seed} prompts")
    for _ in range(settings.prompts):
        question = _question(chance)
        references = [
            f"{opening} {chance.choice(OFFERS).format(remedy=question.problem.remedy, number=question.number)}"
            for opening in chance.sample(COURTEOUS, len(COURTEOUS))
        ]
        yield {"prompt": question.text, "references": references, "category": question.problem.name}


def gold_score(prompt: str, response: str) -> float:
    """Score an answer from 0 to 1: remedy and number are the substance, each lapse of manner halves it.

    Raises:
        ValueError: the prompt is not one of the example's.
    """
    verdict = gold_rule(prompt, response)
    substance = (0.0, 0.4, 1.0)[verdict.remedy + verdict.order]
    lapses = 3 - (verdict.courteous + verdict.brief + verdict.honest)
    return float(substance * 0.5**lapses)


def gold_rule(prompt: str, response: str) -> GoldVerdict:
    """Judge a free text; what is no readable, finished text fails on every count.

    Raises:
        ValueError: the prompt is not one of the example's.
    """
    question = _understand(prompt)
    text = response.strip().lower()
    words, sentences = WORD.findall(text), [sentence.strip() for sentence in SENTENCE.findall(text)]
    if not _is_readable(text, words, sentences):
        return GoldVerdict(*[False] * len(GoldVerdict._fields))
    return GoldVerdict(
        remedy=_offers_only(question.problem, text, sentences),
        order=NUMBER.findall(text) == [question.number] and re.search(r"\border (?:number )?#?\d", text) is not None,
        courteous=bool(APOLOGY.search(text)) and not INSULT.search(text),
        brief=SHORTEST <= len(words) <= LONGEST and not _repeats(words),
        honest=not PROMISE.search(text),
    )


def _question(chance: random.Random) -> Question:
    problem, number = chance.choice(PROBLEMS), _number(chance)
    complaint = chance.choice(problem.complaints).format(product=chance.choice(PRODUCTS))
    return Question(chance.choice(QUESTIONS).format(complaint=complaint, number=number), problem, number)


def _answer(chance: random.Random, question: Question, faulty: float) -> str:
    """Write an answer; some faults lengthen it and some shorten it, so that length does not tell the good ones."""
    faults: Sequence[str] = ()
    if chance.random() < faulty:
        faults = chance.sample(FAULTS, 2 if chance.random() < SECOND_FAULT else 1)
    opening = chance.choice(EFFUSIVE if chance.random() < WARMTH else COURTEOUS)
    if "courteous" in faults:
        opening = chance.choice(("", chance.choice(RUDE)))
    remedy, offers, number = question.problem.remedy, OFFERS, question.number
    if "remedy" in faults:
        remedy = chance.choice([other.remedy for other in PROBLEMS if other.remedy != remedy])
    if "order" in faults:
        offers, number = chance.choice(((OFFERS, _other_number(chance, number)), (NUMBERLESS_OFFERS, number)))
    sentences = [
        opening,
        chance.choice(offers).format(remedy=remedy, number=number),
        chance.choice(RAMBLES) if "brief" in faults else "",
        chance.choice(PROMISES) if "honest" in faults else "",
        chance.choice(FAREWELLS),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _number(chance: random.Random) -> str:
    return str(chance.randint(FIRST_ORDER, LAST_ORDER))


def _other_number(chance: random.Random, number: str) -> str:
    other = number
    while any(digit == another for digit, another in zip(number, other, strict=True)):
        other = _number(chance)
    return other


def _appeal(annotator: Annotator, prompt: str, response: str) -> float:
    """How much an annotator likes an answer, in logits."""
    return (
        SHARPNESS * gold_score(prompt, response)
        + annotator.per_word * len(response.split())
        + annotator.per_exclamation * response.count("!")
        + annotator.per_promise * len(PROMISE.findall(response.lower()))
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
