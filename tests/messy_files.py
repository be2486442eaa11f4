"""Files of random rows: what each row says of itself, votes on it, and bytes in which some rows cannot be read."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

import pyarrow
import pyarrow.parquet

from tasks.data.records import Kind
from tests.messy_rows import (
    GONE,
    Meant,
    Row,
    Style,
    answer_pair,
    hh_pair,
    message_of,
    referenced_prompt,
    whole_pair,
)

DIALECTS: list[tuple[str, Literal[0, 1]]] = [("\n", 1), ("\r\n", 0)]  # csv.QUOTE_ALL, csv.QUOTE_MINIMAL


class File(NamedTuple):
    """A file of rows, and what must be reported of it."""

    source: dict[str, Any]  # its settings
    rows: dict[int, Meant]  # by the number that a person finds
    unused: dict[str, int]
    ignored: dict[str, int]
    bad: list[int]  # the numbers of rows that cannot be read: the file is refused


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
    if style.shape is referenced_prompt:
        rows = _with_more_references(style, rows)
    if style.tag == "annotator" and style.flag is None and style.shape in (answer_pair, whole_pair, hh_pair):
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
