"""Random rows of every shape with random mess, and what must become of each, known before it is written.

A row is first meant (a prompt, its answers, what speaks against it) and then written as people write it: in one of the
shapes, its values in one of their forms, among columns that nothing reads, in a file of one of the formats. What it was
meant to be is never read back from what was written.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from tasks.data.records import Kind

GONE = "worker gone"  # whom the exclusions name
FORMATS = (".jsonl", ".json", ".csv", ".parquet")
WORDS = [
    "a",
    "B",
    "refund",
    "ü",
    "e\u0301",
    "漢字",
    "😀",
    "0",
    "null",
    "NaN",
    "{}",
    "[]",
    '{"a": 1}',
    "[1, 2]",
    "```json",
    "%s",
]
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r", "\r\n", "\u2028", "\x85", "\ufeff"]
TRAPS = [
    "\\",
    '"',
    "'",
    ",",
    ";",
    "Human:",
    "\n\nHuman: no",
    "\n\nAssistant: yes",
    "<|im_end|>",
    "<script>",
    "{{ x }}",
    "\x1b[2J",
]
TALK = '[{"role": "user", "content": "x"}] is a list'
FRAGMENTS = [*WORDS, *SPACES, *TRAPS, "\u202e", TALK]
Row = dict[str, Any]


class Meant(NamedTuple):
    """A row and what must become of it."""

    row: Row
    entries: list[Row]  # the content of its records
    tag: str | None  # their annotator or category
    reason: str | None  # to leave it out
    has_thought: bool = False  # in what is ignored
    is_merged: bool = False  # into the record of another row

    @property
    def is_excluded(self) -> bool:
        """Whether its annotator is."""
        return self.tag == GONE


class Style:
    """How the rows of one file are written: a column holds values of one type, as in Parquet."""

    def __init__(self, random: Random, kind: Kind) -> None:
        self.random, self.kind = random, kind
        self.format = random.choice(FORMATS)
        self.shape = random.choice(list(SHAPES[kind]))
        self.keys = random.choice([("role", "content"), ("from", "value")])
        self.users, self.assistants = random.choice([("user", "assistant"), ("human", "gpt"), ("User", "model")])
        self.prompt_form = random.choice(["text", "message", "list"])
        self.answer_form = random.choice(["text", "message", "list", "whole"])
        writers: list[Callable[[object], str]] = [json.dumps, str]
        self.write = random.choice(writers)  # of lists into texts, where the format has no lists
        self.is_written = self.format == ".csv" or random.random() < 0.2
        self.has_system = random.random() < 0.4
        self.has_thoughts = random.random() < 0.3
        own: dict[Kind, list[str | None]] = {"preferences": ["label", "scores", "margin"], "ratings": []}
        self.flag = random.choice([None, "weight", "train", *own.get(kind, ["label"])])
        self.truths = random.choice([(True, True, False, None), (1, 1, 0, None)])
        self.tag = random.choice([None, "category" if kind == "prompts" else "annotator"])
        self.thought = False  # whether the row that is being written has a thought
        self.extras = random.sample(["id", "note", "source", "meta"], random.randint(0, 3))

    def text(self, start: str = "") -> str:
        """Any text, of which nothing may be changed."""
        return start + "".join(self.random.choices(FRAGMENTS, k=self.random.randint(0, 8)))

    def tidy(self, start: str = "") -> str:
        """A text for the style that takes white space off its turns."""
        return f"{start}{self.random.choice(['yes', 'ü {x}', 'no: 7', '😀'])} {self.random.randint(0, 99)}"

    def message(self, role: str, content: str, **more: Any) -> Row:
        """A message of whom we call user, assistant or system."""
        names = {"user": self.users, "assistant": self.assistants}
        thoughts = {"thinking": self.random.choice([None, "hm"])} if self.has_thoughts else {}
        return dict(zip(self.keys, (names.get(role, role), content), strict=True)) | thoughts | more

    def value(self, form: str, role: str, content: str, before: list[Row]) -> Any:
        """A prompt or an answer in its form."""
        message = self.message(role, content)
        made: Any = {"text": content, "message": message, "list": [message], "whole": [*before, message]}[form]
        return made if form == "text" else self.written(made)

    def written(self, value: Any) -> Any:
        """A list or message as the format can hold it."""
        self.thought |= '"thinking": "hm"' in json.dumps(value)
        return self.write(value) if self.is_written else value


def message_of(role: str, content: str) -> Row:
    """A message of a record."""
    return {"role": role, "content": content}


def _prompted(style: Style, start: str) -> tuple[Row, list[Row], list[Row]]:
    """A prompt in a column of its own: the columns, the prompt of the record, and how it is repeated by an answer."""
    content = style.text(start)
    system = style.random.choice([None, "", style.text("Be kind. ")]) if style.has_system else None
    prompt = [*([message_of("system", system)] if system else []), message_of("user", content)]
    columns = {"prompt": style.value(style.prompt_form, "user", content, [])}
    if style.has_system:
        columns["system"] = system
    return columns, prompt, [style.message("user", content)]


def _answered(style: Style, start: str, name: str) -> tuple[Row, list[Row]]:
    columns, prompt, repeated = _prompted(style, start)
    answer = style.text()
    columns[name] = style.value(style.answer_form, "assistant", answer, repeated)
    return columns, [{"prompt": prompt, "response": answer}]


def _response(style: Style, start: str) -> tuple[Row, list[Row]]:
    return _answered(style, start, "response")


def _completion(style: Style, start: str) -> tuple[Row, list[Row]]:
    return _answered(style, start, "completion")


def _instruction(style: Style, start: str) -> tuple[Row, list[Row]]:
    asked, given, answer = style.text(start), style.random.choice(["", style.text("x")]), style.text()
    prompt = [message_of("user", f"{asked}\n\n{given}" if given else asked)]
    return {"instruction": asked, "input": given, "output": answer}, [{"prompt": prompt, "response": answer}]


def _talk(style: Style, start: str, name: str) -> tuple[Row, list[Row]]:
    """One to three questions with their answers, of which some are only context."""
    messages, history, entries = [], [], []
    for turn in range(turns := style.random.randint(1, 3)):
        asked, answer = style.text(f"{start}{turn} "), style.text()
        is_context = turn < turns - 1 and style.random.random() < 0.5
        weight: Row = {"weight": 0} if is_context else style.random.choice([{}, {"weight": 1}, {"weight": None}])
        messages += [style.message("user", asked), style.message("assistant", answer, **weight)]
        history.append(message_of("user", asked))
        if not is_context or style.kind == "prompts":
            entries.append({"prompt": list(history), "response": None if is_context else answer})
        history.append(message_of("assistant", answer))
    return {name: style.written(messages)}, entries


def _messages(style: Style, start: str) -> tuple[Row, list[Row]]:
    return _talk(style, start, "messages")


def _conversations(style: Style, start: str) -> tuple[Row, list[Row]]:
    return _talk(style, start, "conversations")


def answer_pair(style: Style, start: str) -> tuple[Row, list[Row]]:
    columns, prompt, repeated = _prompted(style, start)
    answers = {name: style.text(name[0]) for name in ("chosen", "rejected")}
    columns |= {name: style.value(style.answer_form, "assistant", text, repeated) for name, text in answers.items()}
    return columns, [{"prompt": prompt} | answers]


def _labelled_pair(style: Style, start: str) -> tuple[Row, list[Row]]:
    columns, [entry] = answer_pair(style, start)
    names, labels = style.random.choice(
        [(("chosen", "rejected"), ("A", "1")), (("rejected", "chosen"), ("b", "model_b"))]
    )
    columns |= {
        "response_a": columns[names[0]],
        "response_b": columns[names[1]],
        "preference": style.random.choice(labels),
    }
    return {name: columns[name] for name in columns if name not in ("chosen", "rejected")}, [entry]


def whole_pair(style: Style, start: str) -> tuple[Row, list[Row]]:
    asked, chosen, rejected = style.text(start), style.text("c"), style.text("r")
    before = [style.message("user", asked)]
    row = {
        name: style.written([*before, style.message("assistant", text)])
        for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    return row, [{"prompt": [message_of("user", asked)], "chosen": chosen, "rejected": rejected}]


def hh_pair(style: Style, start: str) -> tuple[Row, list[Row]]:
    asked, chosen, rejected = style.tidy(start), style.tidy("c"), style.tidy("r")
    row = {
        name: f"\n\nHuman: {asked}\n\nAssistant: {text}" for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    return row, [{"prompt": [message_of("user", asked)], "chosen": chosen, "rejected": rejected}]


def referenced_prompt(style: Style, start: str) -> tuple[Row, list[Row]]:
    columns, prompt, _ = _prompted(style, start)
    references = [style.text("x") for _ in range(style.random.randint(1, 3))]
    columns["references"] = style.written(references)
    return columns, [{"prompt": prompt, "references": references}]


def _thumbs_up_or_down(style: Style, start: str) -> tuple[Row, list[Row]]:
    columns, [entry] = _response(style, start)
    word, is_desirable = style.random.choice([("good", True), ("Yes", True), ("thumbs down", False), ("0", False)])
    return columns | {"label": word}, [entry | {"desirable": is_desirable}]


def _scored(style: Style, start: str) -> tuple[Row, list[Row]]:
    """An answer with a number, of which 3 is the threshold."""
    columns, [entry] = _instruction(style, start)
    rating = style.random.choice([1.0, 2.5, 3.5, 5.0])
    return columns | {"rating": rating}, [entry | {"desirable": rating > 3}]


DEMONSTRATIONS = (_response, _completion, _instruction, _messages, _conversations)
SHAPES = {
    "demonstrations": DEMONSTRATIONS,
    "preferences": (answer_pair, _labelled_pair, whole_pair, hh_pair),
    "ratings": (_thumbs_up_or_down, _scored),
    "prompts": (referenced_prompt, *DEMONSTRATIONS),
}
