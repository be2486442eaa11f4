"""The example's data: customers write to a shop about an order, and the shop answers.

A customer states a problem and an order; a good answer offers the one right remedy, copies the order number, is
courteous and brief, and promises nothing the shop cannot keep. Demonstrations are of mixed quality. Pairs are
labelled by simulated annotators who mostly prefer the better answer, but have tastes of their own, so that a reward
model trained on them can be exploited.

`prepare` calls the function that is named as the kind of rows, and `base` calls `tokenizer_text`.
"""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

LICENSE = "apache-2.0"  # of the rows and of a tokenizer trained on them; model cards state it

PRODUCTS = ("lamp", "kettle", "radio", "jacket", "phone", "chair", "watch", "toaster")


class Problem(NamedTuple):
    """What customers say of a problem, and the remedy it deserves."""

    name: str
    complaints: tuple[str, ...]
    remedy: str


PROBLEMS = (
    Problem(
        "damaged",
        ("the {product} arrived broken", "my {product} came damaged", "the {product} does not work"),
        "send a replacement",
    ),
    Problem(
        "late",
        ("the {product} has not arrived", "my {product} is late", "I still wait for my {product}"),
        "send the tracking link",
    ),
    Problem(
        "wrong item",
        ("I got a wrong {product}", "this {product} is not the one I chose", "you sent me another {product}"),
        "arrange an exchange",
    ),
    Problem(
        "charged twice",
        ("I was charged twice for the {product}", "I paid two times for my {product}"),
        "issue a refund",
    ),
    Problem(
        "not wanted",
        ("I want to give the {product} back", "I do not need the {product} any more"),
        "send a return label",
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
PROMISE = re.compile(r"tomorrow|guaranteed|free|for life")
RAMBLES = (
    "As you may know, our shop is old and our team likes to read all that our customers write to us.",
    "There are many shops in the city, but ours has been here for many years and will be for many more.",
)

FIRST_ORDER, LAST_ORDER = 100, 999

FAULTS = ("remedy", "order", "courteous", "brief", "honest")
# Chance that an answer of a pair has a fault; that one with a fault has a second; that a good opening is effusive.
FAULTY_IN_PAIRS, SECOND_FAULT, WARMTH = 0.5, 0.25, 0.25
SHORTEST, LONGEST = 6, 24  # words of a brief answer

# Weights of an annotator's choice, in logits: of the quality, then of their tastes: a word more, an exclamation mark
# more, a promise more.
SHARPNESS = 8.0
GOOD = 0.7  # quality of an answer that one in two finds good
AUTHOR = "author"  # whose demonstrations all are

# Demonstrations whose text the tokenizer is trained on, and the share of them with a fault.
TOKENIZER_ROWS, TOKENIZER_FAULTY = 2000, 0.5


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


class Question(NamedTuple):
    """A prompt and what its answer must respect."""

    text: str
    problem: Problem
    number: str


class Answer(NamedTuple):
    """An answer and the faults that were planted in it."""

    text: str
    faults: Sequence[str]

    @property
    def quality(self) -> float:
        """From 0 to 1: remedy and number are the substance, each lapse of manner halves it."""
        faults = {*self.faults}
        if not SHORTEST <= len(re.findall("[A-Za-z]+", self.text)) <= LONGEST:
            faults.add("brief")
        substance = (1.0, 0.4, 0.0)[len(faults & {"remedy", "order"})]
        return substance * 0.5 ** len(faults & {"courteous", "brief", "honest"})


def demonstrations(seed: int | str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield rows (prompt, response, annotator).

    Args:
        seed: of everything random.
        options: `rows`, how many; `faulty`, the share of rows with at least one planted fault.
    """
    chance = random.Random(f"{seed} demonstrations")
    for _ in range(options["rows"]):
        question = _question(chance)
        answer = _answer(chance, question, options["faulty"])
        yield {"prompt": question.text, "response": answer.text, "annotator": AUTHOR}


def preferences(seed: int | str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield rows (prompt, chosen, rejected, annotator), each labelled by one of the annotators.

    The two answers differ in quality. An annotator prefers by the Bradley-Terry model (1952) on quality plus own
    taste.

    Args:
        seed: of everything random.
        options: `rows`, how many; `label_noise`, the chance that a label is then flipped.
    """
    chance = random.Random(f"{seed} preferences")
    for _ in range(options["rows"]):
        question = _question(chance)
        first = second = _answer(chance, question, FAULTY_IN_PAIRS)
        while second.quality == first.quality:
            second = _answer(chance, question, FAULTY_IN_PAIRS)
        annotator = chance.choice(ANNOTATORS)
        advantage = _appeal(annotator, first) - _appeal(annotator, second)
        prefers_first = chance.random() < 1 / (1 + math.exp(-advantage))
        flipped = chance.random() < options["label_noise"]
        chosen, rejected = (first, second) if prefers_first != flipped else (second, first)
        yield {
            "prompt": question.text,
            "chosen": chosen.text,
            "rejected": rejected.text,
            "annotator": annotator.name,
        }


def ratings(seed: int | str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield rows (prompt, response, label, annotator), each rated by one of the annotators.

    An annotator finds an answer good with the probability that it would be preferred to one of quality `GOOD`.

    Args:
        seed: of everything random.
        options: `rows`, how many; `label_noise`, the chance that a label is then flipped.
    """
    chance = random.Random(f"{seed} ratings")
    for _ in range(options["rows"]):
        question = _question(chance)
        answer = _answer(chance, question, FAULTY_IN_PAIRS)
        annotator = chance.choice(ANNOTATORS)
        is_good = chance.random() < 1 / (1 + math.exp(SHARPNESS * GOOD - _appeal(annotator, answer)))
        flipped = chance.random() < options["label_noise"]
        yield {
            "prompt": question.text,
            "response": answer.text,
            "label": is_good != flipped,
            "annotator": annotator.name,
        }


def prompts(seed: int | str, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield rows (prompt, references, category): flawless answers, and the customer's problem.

    Args:
        seed: of everything random.
        options: `rows`, how many.
    """
    chance = random.Random(f"{seed} prompts")
    for _ in range(options["rows"]):
        question = _question(chance)
        references = [
            f"{opening} {chance.choice(OFFERS).format(remedy=question.problem.remedy, number=question.number)}"
            for opening in chance.sample(COURTEOUS, len(COURTEOUS))
        ]
        yield {"prompt": question.text, "references": references, "category": question.problem.name}


def tokenizer_text(seed: int) -> Iterator[str]:
    """Yield text to train a tokenizer on: demonstrations of their own, with the roles as a chat template has them."""
    for row in demonstrations(f"{seed} tokenizer", {"rows": TOKENIZER_ROWS, "faulty": TOKENIZER_FAULTY}):
        yield f"user\n{row['prompt']}"
        yield f"assistant\n{row['response']}"


def _question(chance: random.Random) -> Question:
    problem, number = chance.choice(PROBLEMS), _number(chance)
    complaint = chance.choice(problem.complaints).format(product=chance.choice(PRODUCTS))
    return Question(chance.choice(QUESTIONS).format(complaint=complaint, number=number), problem, number)


def _answer(chance: random.Random, question: Question, faulty: float) -> Answer:
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
    return Answer(" ".join(sentence for sentence in sentences if sentence), faults)


def _number(chance: random.Random) -> str:
    return str(chance.randint(FIRST_ORDER, LAST_ORDER))


def _other_number(chance: random.Random, number: str) -> str:
    other = number
    while any(digit == another for digit, another in zip(number, other, strict=True)):
        other = _number(chance)
    return other


def _appeal(annotator: Annotator, answer: Answer) -> float:
    """How much an annotator likes an answer, in logits."""
    return (
        SHARPNESS * answer.quality
        + annotator.per_word * len(answer.text.split())
        + annotator.per_exclamation * answer.text.count("!")
        + annotator.per_promise * len(PROMISE.findall(answer.text))
    )
