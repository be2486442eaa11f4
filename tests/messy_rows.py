"""Random rows of every shape with random mess, and what must become of each, known before it is written.

A row is first meant (a prompt, its answers, what speaks against it) and then written as people write it: in one of the
shapes, its values in one of their forms, among columns that nothing reads, in a file of one of the formats. What it was
meant to be is never read back from what was written.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import pyarrow
import pyarrow.parquet

from tasks.data.records import Kind

GONE = "worker gone"  # whom the exclusions name
DIALECTS: list[tuple[str, Literal[0, 1]]] = [("\n", 1), ("\r\n", 0)]  # csv.QUOTE_ALL, csv.QUOTE_MINIMAL
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


class File(NamedTuple):
    """A file of rows, and what must be reported of it."""

    source: dict[str, Any]  # its settings
    rows: dict[int, Meant]  # by the number that a person finds
    unused: dict[str, int]
    ignored: dict[str, int]
    bad: list[int]  # the numbers of rows that cannot be read: the file is refused


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


def _pair(style: Style, start: str) -> tuple[Row, list[Row]]:
    columns, prompt, repeated = _prompted(style, start)
    answers = {name: style.text(name[0]) for name in ("chosen", "rejected")}
    columns |= {name: style.value(style.answer_form, "assistant", text, repeated) for name, text in answers.items()}
    return columns, [{"prompt": prompt} | answers]


def _labelled_pair(style: Style, start: str) -> tuple[Row, list[Row]]:
    columns, [entry] = _pair(style, start)
    names, labels = style.random.choice(
        [(("chosen", "rejected"), ("A", "1")), (("rejected", "chosen"), ("b", "model_b"))]
    )
    columns |= {
        "response_a": columns[names[0]],
        "response_b": columns[names[1]],
        "preference": style.random.choice(labels),
    }
    return {name: columns[name] for name in columns if name not in ("chosen", "rejected")}, [entry]


def _wholes(style: Style, start: str) -> tuple[Row, list[Row]]:
    asked, chosen, rejected = style.text(start), style.text("c"), style.text("r")
    before = [style.message("user", asked)]
    row = {
        name: style.written([*before, style.message("assistant", text)])
        for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    return row, [{"prompt": [message_of("user", asked)], "chosen": chosen, "rejected": rejected}]


def _hh(style: Style, start: str) -> tuple[Row, list[Row]]:
    asked, chosen, rejected = style.tidy(start), style.tidy("c"), style.tidy("r")
    row = {
        name: f"\n\nHuman: {asked}\n\nAssistant: {text}" for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    return row, [{"prompt": [message_of("user", asked)], "chosen": chosen, "rejected": rejected}]


def _references(style: Style, start: str) -> tuple[Row, list[Row]]:
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
    "preferences": (_pair, _labelled_pair, _wholes, _hh),
    "ratings": (_thumbs_up_or_down, _scored),
    "prompts": (_references, *DEMONSTRATIONS),
}


def _meant(style: Style, start: str) -> Meant:
    style.thought = False
    row, entries = style.shape(style, start)
    said_against, reason = _against(style)
    if style.kind == "prompts":
        answers = [entry.get("references", [entry.get("response")]) for entry in entries]
        remaining = [[] if reason == "label" or None in found else found for found in answers]
        entries = [
            {"prompt": entry["prompt"], "references": list(dict.fromkeys(found))}
            for entry, found in zip(entries, remaining, strict=True)
        ]
        reason = None if reason == "label" else reason
    tag = style.random.choice([None, "ann", "worker 7", "7", *([GONE] if style.tag == "annotator" else [])])
    row |= {style.tag: tag} if style.tag else {}
    return Meant(row | said_against, entries, tag if style.tag else None, reason, style.thought)


def _with_more_references(style: Style, rows: list[Meant]) -> list[Meant]:
    """Some prompts stand once more, with a reference more: each is one prompt, with the references of all its rows."""
    again = []
    for number in style.random.sample(range(len(rows)), 5):
        meant, text = rows[number], style.text("more ")
        [entry] = meant.entries
        if meant.reason or style.flag == "label":  # which may take the references away
            continue
        rows[number] = meant._replace(entries=[entry | {"references": [*entry["references"], text]}])
        again.append(meant._replace(row=meant.row | {"references": style.written([text])}, is_merged=True))
    return rows + again


def _with_votes(style: Style, rows: list[Meant]) -> list[Meant]:
    """Some pairs have two or three votes: the label of most is that of the first row that has it, or it is a tie."""
    added: list[Meant] = []
    swap = {"chosen": "rejected", "rejected": "chosen"}
    for number in style.random.sample(range(len(rows)), 6):
        one = rows[number]
        [entry] = one.entries
        other = one._replace(
            row={name: one.row[swap.get(name, name)] for name in one.row},
            entries=[{name: entry[swap.get(name, name)] for name in entry}],
        )
        votes, record = style.random.choice(
            [([one, one, other], 0), ([one, other, one], 0), ([one, other, other], 1), ([one, other], None)]
        )
        cast = [
            vote._replace(
                row=vote.row | {"annotator": f"voter {place}"},
                tag=None,
                reason="tie" if record is None else None,
                is_merged=record is not None and place != record,
            )
            for place, vote in enumerate(votes)
        ]
        rows[number], added = cast[0], added + cast[1:]
    return rows + added


def _against(style: Style) -> tuple[Row, str | None]:
    """What a row says about itself, and the reason to leave it out where it says something against itself."""
    if style.flag in ("label", "weight", "train"):
        value = style.random.choice(style.truths)
        reason = "label" if style.flag == "label" else "weight"
        return {style.flag: value}, None if value is None or value else reason
    first, second = style.random.choice([(2.5, 1.0)] * 3 + [(1.0, 2.5), (2.0, 2.0)])
    why = None if first > second else "scores" if first < second else "equal_scores"
    if style.flag == "scores":
        return {"score_chosen": first, "score_rejected": second}, why
    return ({"margin": first - second}, why) if style.flag == "margin" else ({}, None)


def make_file(random: Random, kind: Kind, name: str, spoil: bool) -> File:
    """Write a file of 50 to 80 rows; where it is to be spoilt, some of them cannot be read."""
    style = Style(random, kind)
    rows = [_meant(style, f"{name} {number}: ") for number in range(random.randint(50, 80))]
    if style.shape is _references:
        rows = _with_more_references(style, rows)
    if style.tag == "annotator" and style.flag is None and style.shape in (_pair, _wholes, _hh):
        rows = _with_votes(style, rows)
    thinks = sum(meant.has_thought for meant in rows)
    unused: Counter[str] = Counter()
    for meant in rows:
        for extra in style.extras:
            meant.row[extra] = random.choice([None, "", "x"])
            unused[extra] += bool(meant.row[extra])
    bad = sorted(random.sample(range(1, len(rows)), random.randint(1, 15))) if spoil else []
    path = Path(f"{name}{style.format}")
    path.write_bytes(_written(style, [meant.row for meant in rows], bad))
    first = 2 if style.format == ".csv" else 1
    source = {"source": str(path), "ignore": ["thinking"] if style.has_thoughts else []}
    return File(
        source,
        {number + first: meant for number, meant in enumerate(rows)},
        +unused,
        {"thinking": thinks} if thinks else {},
        [number + first for number in bad],
    )


def _written(style: Style, rows: list[Row], bad: list[int]) -> bytes:
    """The bytes of a file; of the rows that are to be bad each is so in its own way, as far as the format lets it."""
    if style.format == ".parquet":
        vital = next(
            name for name in ("prompt", "instruction", "messages", "conversations", "chosen") if name in rows[0]
        )
        spoilt = [row | {vital: None} if number in bad else row for number, row in enumerate(rows)]
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(spoilt), sink)
        return sink.getvalue()
    if style.format == ".csv":
        text = io.StringIO(newline="")
        end, quoting = style.random.choice(DIALECTS)
        table = csv.writer(text, lineterminator=end, quoting=quoting)
        table.writerow(rows[0])
        for number, row in enumerate(rows):
            values = ["" if value is None else str(value) for value in row.values()]
            table.writerow(
                values[:-1] if number in bad and len(values) > 2 else [*values, "more"] if number in bad else values
            )
        return text.getvalue().encode()
    lines = [_spoilt(style, row) if number in bad else json.dumps(row).encode() for number, row in enumerate(rows)]
    return b"[" + b",\n".join(lines) + b"]" if style.format == ".json" else b"\n".join(lines) + b"\n"


def _spoilt(style: Style, row: Row) -> bytes:
    """A row as JSON that cannot be read."""
    vital = next(name for name in ("prompt", "instruction", "messages", "conversations", "chosen") if name in row)
    wrong = style.random.choice(
        [4, None, True, {"a": 1}, [1], [], "half \ud800" if vital in ("prompt", "instruction") else 1.5]
    )
    ways: list[bytes] = [
        json.dumps(row | {vital: wrong}).encode(),
        json.dumps({name: value for name, value in row.items() if name != vital}).encode(),
        json.dumps(row | {"history": [["q", "a"]]}).encode(),
        json.dumps(row | {"images": ["a.png"]}).encode(),
        json.dumps(row | {"train": 0.5}).encode(),
        json.dumps(row | {vital: [message_of("user", "q"), message_of("tool", "t")]}).encode(),
        json.dumps(
            row | {vital: [message_of("user", "q") | {"tool_calls": [1]}, message_of("assistant", "t")]}
        ).encode(),
        b"[1, 2]",
    ]
    if style.format == ".jsonl":
        whole = json.dumps(row).encode()
        ways += [whole[:-2], whole[:-1] + b', "x": 1, "x": 2}', whole[:-1] + b', "x": "\xff"}', b"{", b"NaN"]
    return style.random.choice(ways)
