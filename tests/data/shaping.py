"""Rows in the project's form, by the columns of a raw row; and the messages that tests of shapes are made of."""

from typing import Any

from tasks.data.records import Kind
from tasks.data.shapes.columns import Tally
from tasks.data.shapes.convert import ShapedRow, shape_rows
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.settings.params import RatingSource, Source

U, A, B = (
    {"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "No"))
)
S = {"role": "system", "content": "Be kind."}
GPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def shaped(kind: Kind, *rows: dict[str, Any], **columns: str) -> list[ShapedRow]:
    raw = [RawRow(number, fields) for number, fields in enumerate(rows, start=1)]
    source = Source(source="file.jsonl", columns=columns, ignore=[], limit=None, options={})
    if kind == "ratings":
        source = RatingSource(**source.model_dump(), threshold=3.0)
    return list(shape_rows(raw, kind, source, "file.jsonl", bad=BadRows("file.jsonl"), tally=Tally.empty()))


def entries(kind: Kind, row: dict[str, Any], **columns: str) -> list[dict[str, Any]]:
    [only] = shaped(kind, row, **columns)
    return only.entries
