"""Tasks of Self-Instruct (Wang et al. 2023), each with one constraint that a program checks.

The constraint of a task is drawn by its hash; all but `json_keys` are of IFEval (Zhou et al. 2023). The reference is
the task's own answer, cut to its first sentences and changed to keep the constraint, or the constraint is chosen so
that the answer keeps it. Three tasks in ten are set aside: they come with each of the kinds UNSEEN, which
`prepare.prompts.test_only` keeps for the test split. A constraint has fewer than 13 words: rows of two splits that
share as many are taken for near duplicates.

The data are the two files that people wrote for it, named in FILES, in the folder that `prepare.data` names: rows with
a prompt and a response or references.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

LICENSE = "apache-2.0"

FILES = ("seed_tasks_sft.jsonl", "user_oriented_eval.jsonl")
UNUSED = {"instruction_id_list": None, "kwargs": None, "json_schema": None}  # a row names all columns of the file
LONGEST_TASK, LONGEST_ANSWER = 80, 25  # words
SET_ASIDE = 0.3  # of the tasks
KEYS = (("answer", "topic"), ("reply", "subject"), ("result", "task"), ("text", "about"))
ENDINGS = ("That is all.", "I hope this helps.", "Let me know what you think.", "Thank you for asking.")
SENTENCES, SENTENCE = re.compile(r".*[^\W\d][.!?](?= )"), re.compile(r"\W*\w[^.!?]*[.!?]?")
WORD, COUNTED = re.compile(r"\b[A-Za-z]{5,}\b"), re.compile(r"\w+(?:['\u2019-]\w+)*")


class Constrained(NamedTuple):
    """What the prompt asks for beside the task, an answer that has it, and what a verifier needs to know."""

    request: str
    answer: str
    columns: dict[str, Any]


def lower_case(task: str, answer: str, draw: random.Random) -> Constrained:
    """No capitals."""
    request = "Write your whole reply in lower case letters, without capitals."
    return _checked(request, answer.lower(), "change_case:english_lowercase")


def no_comma(task: str, answer: str, draw: random.Random) -> Constrained:
    """No comma."""
    return _checked("Do not use any commas in your reply.", answer.replace(",", ""), "punctuation:no_comma")


def few_words(task: str, answer: str, draw: random.Random) -> Constrained:
    """Fewer words than 10, 15 or 20."""
    limit = draw.choice((10, 15, 20))
    words = list(COUNTED.finditer(answer))
    short = answer[: words[limit - 1].start()].strip() if len(words) >= limit else answer
    details = {"relation": "less than", "num_words": limit}
    return _checked(f"Reply with less than {limit} words.", short, "length_constraints:number_words", **details)


def keywords(task: str, answer: str, draw: random.Random) -> Constrained:
    """Two words of the answer."""
    known = sorted({word.lower() for word in WORD.findall(answer)}) or ["certainly"]
    chosen = draw.sample(known, min(2, len(known)))
    named = " and ".join(f'"{word}"' for word in chosen)
    answer = answer if WORD.search(answer) else f"Certainly: {answer}"
    return _checked(f"Use the keywords {named} in your reply.", answer, "keywords:existence", keywords=chosen)


def ending(task: str, answer: str, draw: random.Random) -> Constrained:
    """A last sentence, word for word."""
    phrase = draw.choice(ENDINGS)
    request = f'End your reply with "{phrase}"'
    return _checked(request, f"{answer} {phrase}", "startend:end_checker", end_phrase=phrase)


def json_keys(task: str, answer: str, draw: random.Random) -> Constrained:
    """A JSON object with two keys."""
    first, second = draw.choice(KEYS)
    topic = max(WORD.findall(task) or ["this"], key=len)
    schema = {
        "type": "object",
        "properties": {name: {"type": "string", "minLength": 1} for name in (first, second)},
        "required": [first, second],
        "additionalProperties": False,
    }
    request = f'Reply with a JSON object with the keys "{first}" and "{second}" only.'
    return Constrained(request, json.dumps({first: answer, second: topic}), {"json_schema": json.dumps(schema)})


def capitals(task: str, answer: str, draw: random.Random) -> Constrained:
    """Capitals alone."""
    return _checked("Write your whole reply in capital letters.", answer.upper(), "change_case:english_capital")


def quotation(task: str, answer: str, draw: random.Random) -> Constrained:
    """Quotation marks around all."""
    return _checked("Put double quotation marks around your whole reply.", f'"{answer}"', "startend:quotation")


def one_sentence(task: str, answer: str, draw: random.Random) -> Constrained:
    """Fewer sentences than two."""
    found = SENTENCE.match(answer)
    first = found[0] if found else answer
    name, details = "length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2}
    return _checked("Reply with one sentence only.", first, name, **details)


Constrain = Callable[[str, str, random.Random], Constrained]
SEEN: tuple[Constrain, ...] = (lower_case, no_comma, few_words, keywords, ending, json_keys)
UNSEEN: tuple[Constrain, ...] = (capitals, quotation, one_sentence)


def demonstrations(seed: int, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the tasks with constraints of the kinds SEEN, and answers that keep them."""
    for task, answer in _tasks(**options):
        draw = _draw(task, seed)
        if draw.random() >= SET_ASIDE:
            found = draw.choice(SEEN)(task, answer, draw)
            yield {"prompt": f"{task}\n\n{found.request}", "response": found.answer}


def prompts(seed: int, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the same prompts, with what the verifiers need, and the tasks that are set aside with each of UNSEEN."""
    for task, answer in _tasks(**options):
        draw = _draw(task, seed)
        for kind in UNSEEN if draw.random() < SET_ASIDE else [draw.choice(SEEN)]:
            found = kind(task, answer, draw)
            row = {"prompt": f"{task}\n\n{found.request}", "references": [found.answer], "category": kind.__name__}
            yield row | UNUSED | found.columns


def _tasks(folder: str) -> Iterator[tuple[str, str]]:
    for line in b"\n".join((Path(folder) / name).read_bytes() for name in FILES).splitlines():
        if line:
            row = json.loads(line)
            task, answer = row["prompt"], _first_sentences(row.get("response") or row["references"][0])
            if re.search("[A-Za-z]{3}", answer) and answer.isprintable() and len(task.split()) <= LONGEST_TASK:
                yield task, answer


def _first_sentences(answer: str) -> str:
    """At most LONGEST_ANSWER words, up to the end of a sentence where there is one."""
    words = answer.split()
    text = " ".join(words[:LONGEST_ANSWER])
    whole = SENTENCES.match(text + " ") if len(words) > LONGEST_ANSWER else None
    return whole[0] if whole else text


def _draw(task: str, seed: int) -> random.Random:
    return random.Random(hashlib.sha256(f"{seed} {task}".encode()).digest())


def _checked(request: str, answer: str, name: str, **details: object) -> Constrained:
    return Constrained(request, answer, {"instruction_id_list": [name], "kwargs": [details]})
