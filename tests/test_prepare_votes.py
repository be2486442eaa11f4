"""The stage `prepare` on pairs that several annotators compared, up to what `validate` says of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.files import PREPARED
from tasks.common.lines import Lines
from tasks.data.checks.schema import inspect
from tasks.data.records import Preference
from tasks.prepare import LEFT_OUT, prepare
from tests.conftest import records_of
from tests.test_prepare import four_sources, metrics, params_with, write_rows


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()


def voted(*votes: str, prompts: int = 30) -> list[dict[str, Any]]:
    """A row a vote: an annotator's letter and A, B or tie, of each prompt."""
    return [
        {"prompt": f"q{n}", "response_a": f"a{n}", "response_b": "no", "winner": vote[1:], "annotator": vote[0]}
        for vote in votes
        for n in range(prompts)
    ]


def prepared(rows: list[dict[str, Any]], **settings: Any) -> list[Preference]:
    source = {"source": write_rows("v.jsonl", rows), **settings}
    prepare(params_with(**{**four_sources(), "preferences": source}))
    return [record for record in records_of(PREPARED, "preferences") if isinstance(record, Preference)]


def counts(*names: str) -> list[int]:
    found = metrics()["preferences"]
    all_of_them = {**found, **found["left_out"], **found.get("votes", {})}
    return [all_of_them.get(name, 0) for name in names]


def test_three_votes_on_a_pair_are_one_record():
    one, two = prepared(voted("xA")), prepared(voted("xA", "yB", "zA"))
    assert [(record.annotator, record.votes, record.share) for record in one] == [("x", None, None)] * 30
    assert [record._replace(annotator="x", votes=None, share=None) for record in two] == one  # ids and splits, too
    for record in two:
        assert record.votes is not None
        assert record.annotator is None
        assert record.share == 2 / 3
        assert [(vote["annotator"], vote["choice"]) for vote in record.votes] == [
            ("x", "chosen"), ("y", "rejected"), ("z", "chosen")
        ]  # fmt: skip
    assert counts("rows_read", "merged", "tie", "excluded", "rows_kept") == [90, 60, 0, 0, 30]
    assert metrics()["preferences"]["votes"] == {"pairs": 30, "merged": 60, "counted": 90, "chosen": 60}
    assert {inspect("preferences", line).fault for line in Lines(PREPARED / "preferences.jsonl")} == {None}


def test_pairs_nobody_preferred_are_set_aside_with_their_votes():
    rows = [*voted("xA", prompts=40), *voted("yB", prompts=10), {**voted("zA")[0], "prompt": "own", "winner": "tie"}]
    records = prepared(rows)
    assert counts("rows_read", "merged", "tie", "rows_kept") == [51, 0, 21, 30]
    assert "votes" not in metrics()["preferences"]
    ties = list(Lines(PREPARED / LEFT_OUT))
    assert [(tie["source"], tie["row"], tie["reason"]) for tie in ties] == [
        ("v.jsonl", row, "tie") for row in (*range(1, 11), 51)
    ]
    assert [(vote["annotator"], vote["row"]) for vote in ties[3]["votes"]] == [("x", 4), ("y", 44)]
    assert (ties[3]["detail"], ties[-1]["detail"]) == (
        "neither answer has most votes", "its label prefers neither answer"
    )  # fmt: skip
    assert [record.row for record in records] == list(range(11, 41))


def test_data_without_several_votes_have_the_bytes_of_before():
    prepared(voted("xA"))
    line = json.loads((PREPARED / "preferences.jsonl").read_text().splitlines()[0])
    assert list(line) == ["id", "split", "source", "row", "prompt", "chosen", "rejected", "annotator"]
    assert "votes" not in metrics()["preferences"]
    assert (PREPARED / LEFT_OUT).read_bytes() == b""


def test_the_votes_of_an_excluded_annotator_do_not_count():
    before = prepared(voted("xA", "yB", "zA"))
    Path("exclude.txt").write_text("annotator X\n")
    assert prepared(voted("xA", "yB", "zB"))[0].chosen == "no"
    Path("exclude.txt").write_text("annotator x\nannotator z\n")
    left = prepared(voted("xA", "yB", "zA"))
    assert {(record.chosen, record.annotator, record.votes) for record in left} == {("no", "y", None)}
    assert counts("rows_read", "excluded", "merged", "tie", "rows_kept") == [90, 60, 0, 0, 30]
    assert [record.split for record in left] == [record.split for record in before]


@pytest.mark.parametrize("label", ["majority", "minority"])
def test_a_row_is_excluded_with_all_votes_on_its_pair(label):
    records = prepared(voted("xA", "yB", "zA"))
    gone = next(record for record in records if record.split == "train")
    assert gone.votes is not None
    named = gone.id if label == "majority" else gone.votes[1]["id"]
    Path("exclude.txt").write_text(f"row {named}\n")
    # Whatever the others vote by now: what is excluded is the pair.
    for votes in (("xA", "yB", "zA"), ("xB", "yB", "zA"), ("yB",), ("xA", "yB")):
        others = [row for row in voted("xA", "zA", prompts=60) if int(row["prompt"][1:]) >= 30]
        left = prepared([*voted(*votes), *others])
        assert gone.prompt not in [record.prompt for record in left]
        assert counts("excluded") == [len(votes)]
        assert sum(counts("excluded", "merged", "tie", "rows_kept")) == counts("rows_read")[0]


def test_votes_in_several_files_are_on_one_pair():
    Path("week").mkdir()
    for name, votes in (("a", ("xA",)), ("b", ("yB", "zB"))):
        write_rows(f"week/{name}.jsonl", voted(*votes))
    sources = four_sources() | {"preferences": "week"}
    prepare(params_with(**sources))
    [record, *_] = records_of(PREPARED, "preferences")
    assert isinstance(record, Preference)
    assert record.votes is not None
    assert (record.source, record.chosen) == ("week/b.jsonl", "no")
    assert [vote["source"] for vote in record.votes] == ["week/a.jsonl", "week/b.jsonl", "week/b.jsonl"]
    Path("exclude.txt").write_text("source week/b.jsonl\n")
    prepare(params_with(**sources))
    assert {(each.source, each.chosen == "no") for each in records_of(PREPARED, "preferences")} == {
        ("week/a.jsonl", False)
    }


def test_limit_counts_a_pair_once():
    whole = prepared(voted("xA", "yB", "zA", prompts=60))
    few = prepared(voted("xA", "yB", "zA", prompts=60), limit=40)
    assert counts("rows_read", "merged", "rows_kept") == [180, 120, 40]
    assert {record.id for record in few} < {record.id for record in whole}
    one = prepared(voted("xA", prompts=60), limit=40)
    assert [record.id for record in one] == [record.id for record in few]  # votes do not choose
