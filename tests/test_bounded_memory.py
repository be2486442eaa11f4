"""Memory does not hold the texts: what a row more costs is far less than the row, in every step up to training."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.common.files import PREPARED
from tasks.common.lines import Lines
from tasks.data.checks import contamination, look
from tasks.data.checks.tables import tables
from tasks.data.encoding import tokens
from tasks.data.encoding.encoded import ENCODED, encoded_preferences
from tasks.data.records import TYPES
from tasks.learning.batches import collate_pairs, training_batches
from tasks.learning.held_out import pair_batches
from tasks.learning.processes import micro_batches_of_rank
from tasks.prepare import prepare
from tasks.settings.params import Params
from tests.conftest import MakeParams, rows_from
from tests.tiny import tiny_tokenizer

ANSWERS = {
    "demonstrations": ("response",),
    "preferences": ("chosen", "rejected"),
    "ratings": ("chosen", "rejected"),
    "prompts": (),
}
FEW, MANY = 50, 150
WORDS, LETTERS = 12, 300  # of a text, and of each of its words: 3.6 kB of 12 tokens
# Of a row there may be numbers, hashes and findings, but not one of its texts.
MOST_BYTES = 500


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_params: MakeParams) -> Params:
    """Sources in an empty folder, and small portions of what is worked on at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokens, "RECORDS_AT_ONCE", 10)
    monkeypatch.setattr(look, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(contamination, "_TEXTS_AT_ONCE", 10)
    monkeypatch.setattr(contamination, "_WORDS_REMEMBERED", 10)
    settings = make_params(prepare={kind: rows_from(kind, f"{kind}.jsonl") for kind in ANSWERS})
    Path(settings.prepare.exclude).touch()
    return settings


def write_rows(count: int) -> None:
    for kind, answers in ANSWERS.items():
        rows = ({name: text(f"{kind} {name} {number}") for name in ("prompt", *answers)} for number in range(count))
        Path(f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def text(start: str) -> str:
    return " ".join([start, *(f"{start[-2:].strip()}{place}" + "x" * LETTERS for place in range(WORDS))])


def bytes_a_row(work: Callable[[int], object], settings: Params) -> float:
    """What the most that Python's own allocations hold at once grows by, for a row more of each kind."""
    peaks = []
    for count in (FEW, FEW, MANY):  # what is made once is made in the first round
        write_rows(count)
        prepare(settings)
        tracemalloc.start()
        work(count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return (peaks[2] - peaks[1]) / (MANY - FEW)


def test_preparing_holds_no_rows(settings: Params):
    assert bytes_a_row(lambda _: prepare(settings), settings) < MOST_BYTES


@pytest.mark.slow
def test_checking_holds_no_texts(settings: Params):
    tokenizer: Any = tiny_tokenizer()

    def check(count: int) -> None:
        found = tables({kind: Lines(PREPARED / f"{kind}.jsonl") for kind in TYPES}, tokenizer)
        assert [len(table) for table in found.values()] == [count, count, 2 * count, count, 0]

    assert bytes_a_row(check, settings) < 5 * MOST_BYTES  # a row of each kind; two ratings


def test_training_holds_no_ids(settings: Params):
    tokenizer: Any = tiny_tokenizer()

    def read(_: int) -> None:
        shutil.rmtree(ENCODED, ignore_errors=True)
        pairs = encoded_preferences(PREPARED, "train", tokenizer, None)
        lengths = (2 * pairs.lengths).tolist()
        for _, items in training_batches(len(pairs), 4, 1, seed=7):
            for group in micro_batches_of_rank(items, lengths, 200):
                collate_pairs([pairs[item] for item in group.items])
        held_out: Any = pair_batches(pairs, 200, "cpu")  # type: ignore[arg-type]
        assert sum(len(batch.rows) for batch in held_out.batches) == 2 * len(pairs)

    assert bytes_a_row(read, settings) < MOST_BYTES
