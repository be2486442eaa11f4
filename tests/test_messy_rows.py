"""Whatever rows people have: each is taken, left out, excluded or merged as it is meant, or its file is refused.

In `prepare` for every seed, and in `validate` for the records of the seeds of a portion together.
"""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import METRICS, MODELS, PREPARED, VALIDATED
from tasks.data.records import TAGS, TYPES, Kind
from tasks.prepare import LEFT_OUT, prepare
from tasks.settings.params import parse_params
from tasks.validate import validate
from tests.conftest import OF_PEOPLE
from tests.messy_files import File, make_file
from tests.messy_rows import GONE
from tests.test_prepare import settings_with

SEEDS = int(os.environ.get("TRUELINE_FUZZ_SEEDS", "300"))
PORTION = 50  # seeds of a test
CHECKED = 10  # of a portion whose records go on to validate

pytestmark = pytest.mark.fuzz


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, PORTION))
def test_every_row_is_accounted_for(first, tiny_model):
    settings = settings_with()
    settings["validate"] |= {"max_quarantined": 1.0, "min_rows": 1}
    settings["prepare"]["ratings"]["threshold"] = 3.0
    seeds = range(first, min(first + PORTION, SEEDS))
    for seed in seeds:
        _try(seed, settings, keep=seed % PORTION < CHECKED)
    shutil.copytree(tiny_model, MODELS / "base")
    shutil.rmtree(PREPARED, ignore_errors=True)
    Path("all").rename(PREPARED)
    validate(parse_params(settings))
    for kind in OF_PEOPLE:
        _check_validated(kind)


def _try(seed: int, settings: dict[str, Any], keep: bool) -> None:
    """One file of each kind through prepare; of one in four seeds one of them is spoilt."""
    random = Random(seed)
    spoilt = random.choice(OF_PEOPLE) if random.random() < 0.25 else None
    files = {kind: make_file(random, kind, f"{kind}{seed}", kind == spoilt) for kind in OF_PEOPLE}
    for kind, file in files.items():
        settings["prepare"][kind] |= file.source
    Path("exclude.txt").write_text(f"annotator {GONE}\n")
    shutil.rmtree(PREPARED, ignore_errors=True)
    try:
        prepare(parse_params(settings))
    except InputError as error:
        assert spoilt, (seed, str(error))
        _check_refusal(files[spoilt], str(error), seed)
        return
    assert not spoilt, (seed, spoilt, files[spoilt].bad)
    for kind, file in files.items():
        _check(kind, file, seed)
    if keep:
        Path("all").mkdir(exist_ok=True)
        for kind in TYPES:
            with Path("all", f"{kind}.jsonl").open("ab") as together:
                together.write((PREPARED / f"{kind}.jsonl").read_bytes())


def _check_refusal(file: File, message: str, seed: int) -> None:
    """The sentence names the file, the first ten bad rows and how many more there are, and nothing is written."""
    assert message.startswith(file.source["source"]) and "\n" not in message and len(message) < 4100, (seed, message)
    if len(file.bad) > 1:
        assert f" has {len(file.bad)} bad rows: " in message, (seed, message)
    if len(file.bad) > 10:
        assert f"; and {len(file.bad) - 10} more: " in message, (seed, message)
    words = set(message.replace(",", " ").replace(":", " ").split())
    assert {str(row) for row in file.bad[:10]} <= words, (seed, message)
    assert not PREPARED.exists(), seed


def _check(kind: Kind, file: File, seed: int) -> None:
    """In = taken + left out + excluded + merged, row by row, and no text is changed."""
    metrics = json.loads((METRICS / "prepare.json").read_text())[kind]
    left = {number: meant.reason for number, meant in file.rows.items() if meant.reason}
    excluded = {number: meant for number, meant in file.rows.items() if meant.is_excluded and not meant.reason}
    merged = [number for number, meant in file.rows.items() if meant.is_merged]
    taken = {number: meant for number, meant in file.rows.items() if number not in {*left, *excluded, *merged}}
    found: dict[int, list[dict[str, Any]]] = {}
    tags: dict[int, set[str | None]] = {}
    for record in _lines(PREPARED / f"{kind}.jsonl"):
        number = record["row"]
        found.setdefault(number, []).append({name: record[name] for name in file.rows[number].entries[0]})
        tags.setdefault(number, set()).add(record[TAGS[kind]])
    assert found == {number: meant.entries for number, meant in taken.items()}, seed
    assert tags == {number: {meant.tag} for number, meant in taken.items()}, seed
    lines = [line for line in _lines(PREPARED / LEFT_OUT) if line["file"] == f"{kind}.jsonl"]
    places = {each["row"]: line["reason"] for line in lines for each in line.get("votes", [line])}
    assert places == left, seed
    assert metrics["rows_read"] == len(file.rows), seed
    assert metrics["left_out"] == Counter(left.values()), seed
    assert metrics["excluded"] == sum(len(meant.entries) for meant in excluded.values()), seed
    assert metrics["records"] == sum(len(meant.entries) for meant in taken.values()), seed
    assert (metrics["unused"], metrics["ignored"]) == (file.unused, file.ignored), seed
    if kind == "preferences":
        assert metrics.get("votes", {}).get("merged", 0) == len(merged), seed


def _check_validated(kind: Kind) -> None:
    """In = valid + quarantined, each with a reason, and no byte of a valid row is changed."""
    given = Counter((PREPARED / f"{kind}.jsonl").read_text().split("\n"))
    valid = Counter((VALIDATED / f"{kind}.jsonl").read_text().split("\n"))
    gone = [line for line in _lines(VALIDATED / "quarantine.jsonl") if line["file"] == f"{kind}.jsonl"]
    assert all(line["reasons"] for line in gone)
    assert valid + Counter(json.dumps(line["record"], ensure_ascii=False) for line in gone) == given
    metrics = json.loads((METRICS / "validate.json").read_text())[kind]
    assert metrics["rows"] == metrics["valid"] + metrics["quarantined"] == given.total() - 1
    assert metrics["quarantined"] == len(gone)
    reasons = Counter(reason for line in gone for reason in line["reasons"])
    counted = {check: sum(by_split.values()) for check, by_split in metrics["findings"].items()}
    assert {check: counted[check] for check in reasons} == reasons


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]
