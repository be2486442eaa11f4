"""The stage `prepare`: what is excluded is as if no source held it, and a folder is read file by file."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import PREPARED
from tasks.data.records import TAGS, TYPES, read_prompts
from tasks.prepare import prepare
from tests.conftest import OF_PEOPLE, records_of
from tests.test_prepare import four_sources, metrics, params_with, write_rows


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()


def lines_of(kind: str, *, without: str = "") -> list[dict[str, Any]]:
    """The records of a kind, without those of a prompt, and without their row, which counts the rows before."""
    lines = [json.loads(line) for line in (PREPARED / f"{kind}.jsonl").read_text().splitlines()]
    return [{**line, "row": 0} for line in lines if line["prompt"][0]["content"] != without]


@pytest.mark.parametrize("limit", [None, 20])
@pytest.mark.parametrize("kind", ["demonstrations", "preferences", "prompts"])
def test_an_excluded_row_is_as_if_the_source_did_not_hold_it(kind, limit):
    sources = four_sources(40)
    changes: dict[str, Any] = {**sources, kind: {"source": sources[kind], "limit": limit}}
    prepare(params_with(**changes))
    before = lines_of(kind)
    gone = next(line for line in before if line["split"] == "train")
    Path("exclude.txt").write_text(f"row {gone['id']} # on request\n")
    prepare(params_with(**changes))
    excluded = lines_of(kind)
    assert {name: metrics()[kind][name] for name in ("rows_read", "excluded", "rows_kept")} == {
        "rows_read": 40, "excluded": 1, "rows_kept": limit or 39
    }  # fmt: skip
    others = [line for line in before if line["id"] != gone["id"]]
    assert [line for line in excluded if line in others] == others  # nothing else moves, nor changes its split

    Path("exclude.txt").write_text("")
    rows = Path(sources[kind]).read_text().splitlines(keepends=True)
    prompt = json.dumps(gone["prompt"][0]["content"])
    Path(sources[kind]).write_text("".join(row for row in rows if prompt not in row))
    prepare(params_with(**changes))
    assert lines_of(kind) == excluded


def test_a_prompt_of_several_rows_is_excluded_as_a_whole():
    sources = four_sources()
    rows = [{"prompt": f"q{n % 30}", "references": [f"a{n}"]} for n in range(60)]
    sources["prompts"] = write_rows("r.jsonl", rows)
    prepare(params_with(**sources))
    gone = next(record for record in read_prompts(PREPARED) if record.split == "train")
    assert len(gone.references) == 2
    Path("exclude.txt").write_text(f"row {gone.id}\n")
    prepare(params_with(**sources))
    assert gone.prompt not in [record.prompt for record in read_prompts(PREPARED)]
    assert (metrics()["prompts"]["excluded"], metrics()["prompts"]["records"]) == (1, 29)


def test_one_answer_of_a_conversation_can_be_excluded():
    answered = [{"role": "assistant", "content": "so"}, {"role": "user", "content": "and?"}]
    rows = [{"messages": [{"role": "user", "content": f"q{n}"}, *answered * 2]} for n in range(30)]
    sources = four_sources() | {"demonstrations": write_rows("m.jsonl", rows)}
    prepare(params_with(**sources))
    first, second = (record for record in records_of(PREPARED, "demonstrations") if record.row == 7)
    Path("exclude.txt").write_text(f"row {first.id}\n")
    prepare(params_with(**sources))
    assert [record for record in records_of(PREPARED, "demonstrations") if record.row == 7] == [second]
    assert metrics()["demonstrations"]["excluded"] == 1


def annotated_sources(count: int = 40) -> dict[str, str]:
    """Sources whose answers are by annotator 0, 1, 2 or nobody in turn, and prompts in categories of those names."""
    sources = four_sources(count)
    for kind in OF_PEOPLE:
        field = TAGS[kind]
        rows = [json.loads(line) for line in Path(sources[kind]).read_text().splitlines()]
        write_rows(sources[kind], [row | ({field: n % 4} if n % 4 < 3 else {}) for n, row in enumerate(rows)])
    return sources


@pytest.mark.parametrize("kind", ["demonstrations", "preferences"])
def test_an_annotator_is_recorded_and_changes_neither_ids_nor_splits_nor_what_limit_chooses(kind):
    found = []
    for make in (four_sources, annotated_sources):
        sources = make(100)
        prepare(params_with(**sources | {kind: {"source": sources[kind], "limit": 40}}))
        found.append(records_of(PREPARED, kind))
    without, with_annotator = found
    assert {record.annotator for record in without} == {None}
    numbers = [int(record.prompt[0]["content"].removeprefix("q")) for record in with_annotator]
    assert [record.annotator for record in with_annotator] == [["0", "1", "2", None][n % 4] for n in numbers]
    assert [record._replace(annotator=None) for record in with_annotator] == without


def test_an_excluded_annotator_is_as_if_the_sources_did_not_hold_their_rows():
    sources = annotated_sources()
    prepare(params_with(**sources))
    before = {kind: lines_of(kind) for kind in TYPES}
    Path("exclude.txt").write_text("annotator 1\nannotator 2\n")
    prepare(params_with(**sources))
    for kind in ("demonstrations", "preferences"):  # of 40 rows each has ten
        assert lines_of(kind) == [line for line in before[kind] if line["annotator"] not in {"1", "2"}]
        assert (metrics()[kind]["excluded"], metrics()[kind]["records"]) == (20, 20)
    assert lines_of("prompts") == before["prompts"]  # a category is no annotator
    assert metrics()["prompts"]["excluded"] == 0


def test_a_row_that_is_excluded_twice_counts_once(caplog):
    sources = annotated_sources()
    prepare(params_with(**sources))
    gone = next(record for record in records_of(PREPARED, "preferences") if record.annotator == "1")
    Path("exclude.txt").write_text(f"annotator 1\nrow {gone.id}\n")
    prepare(params_with(**sources))
    assert metrics()["preferences"]["excluded"] == 10
    assert "nothing matches" not in caplog.text


def test_an_excluded_annotator_whom_no_row_names_is_named(caplog):
    Path("exclude.txt").write_text("annotator 1\n")
    prepare(params_with(**four_sources()))
    assert "exclude.txt excludes annotator 1, which nothing matches: it may have been deleted" in caplog.text


def test_an_excluded_row_that_no_source_holds_is_named(caplog):
    Path("exclude.txt").write_text("row 0123456789abcdef\n")
    prepare(params_with(**four_sources()))
    assert "exclude.txt excludes row 0123456789abcdef, which nothing matches: it may have been deleted" in caplog.text
    assert {metrics()[kind]["excluded"] for kind in metrics()} == {0}


def test_an_excluded_source_is_not_read():
    Path("exclude.txt").write_text("source p.jsonl\nsource other.jsonl\n")
    with pytest.raises(InputError, match=r"exclude.txt excludes all of p.jsonl: name another source as prepare.pref"):
        prepare(params_with(**four_sources()))
    assert not PREPARED.exists()


def test_an_excluded_source_that_is_none_is_named(caplog):
    Path("exclude.txt").write_text("source gone.jsonl\n")
    prepare(params_with(**four_sources()))
    assert "exclude.txt excludes source gone.jsonl, which nothing matches" in caplog.text


@pytest.mark.parametrize("name", ["pairs", "./pairs/", "{here}/pairs"])
def test_a_folder_is_excluded_by_its_name(name, caplog):
    sources = four_sources() | {"preferences": weekly_pairs()}
    Path("exclude.txt").write_text(f"source {name.format(here=Path.cwd())}\n")
    with pytest.raises(InputError, match=r"exclude.txt excludes all of pairs: name another source"):
        prepare(params_with(**sources))
    prepare(params_with(**sources | {"preferences": "p.jsonl"}))
    assert "exclude.txt excludes source pairs, which nothing matches" in caplog.text


def test_an_exclusion_of_all_rows_is_refused():
    sources = four_sources()
    rows = [json.loads(line) | {"annotator": "Ann"} for line in Path("p.jsonl").read_text().splitlines()]
    write_rows("p.jsonl", rows)
    Path("exclude.txt").write_text("annotator Ann\n")
    with pytest.raises(
        InputError, match=r"p.jsonl: its 0 preferences, without the 30 that exclude.txt excludes, leave"
    ):
        prepare(params_with(**sources))


def weekly_pairs() -> str:
    """A folder of two files, of which the second holds a pair of the first."""
    Path("pairs").mkdir(exist_ok=True)
    rows = [{"prompt": f"q{n}", "chosen": f"a{n}", "rejected": "no"} for n in range(61)]
    write_rows("pairs/2026-w46.jsonl", rows[:31])
    mapped = [{name: row[name] for name in ("rejected", "prompt", "chosen")} for row in rows[30:]]
    Path("pairs/2026-w47.csv").write_text(
        "rejected,prompt,chosen\n" + "".join(f"{','.join(row.values())}\n" for row in mapped)
    )
    return "pairs"


def test_a_folder_is_read_file_by_file_and_rows_know_theirs():
    prepare(params_with(**four_sources() | {"preferences": weekly_pairs()}))
    records = records_of(PREPARED, "preferences")
    assert [(record.source, record.row) for record in records] == [
        *(("pairs/2026-w46.jsonl", row) for row in range(1, 32)),
        *(("pairs/2026-w47.csv", row) for row in range(2, 33)),
    ]
    assert records[30].id == records[31].id  # one content, for validate to find
    found = metrics()["preferences"]
    assert (found["rows_read"], found["records"]) == (62, 62)
    assert {name: source["rows"] for name, source in found["sources"].items()} == {
        "pairs/2026-w46.jsonl": 31,
        "pairs/2026-w47.csv": 31,
    }


def test_limit_counts_over_all_files_and_their_order_stays():
    chosen = {"source": weekly_pairs(), "limit": 40}
    prepare(params_with(**four_sources() | {"preferences": chosen}))
    places = [(record.source, record.row) for record in records_of(PREPARED, "preferences")]
    assert len(places) == 40
    assert places == sorted(places)
    assert len({source for source, _ in places}) == 2


def test_a_file_of_a_folder_can_be_excluded_and_then_the_others():
    sources = four_sources() | {"preferences": weekly_pairs()}
    Path("exclude.txt").write_text("source pairs/2026-w46.jsonl\n")
    prepare(params_with(**sources))
    assert {record.source for record in records_of(PREPARED, "preferences")} == {"pairs/2026-w47.csv"}
    found = metrics()["preferences"]["sources"]
    assert found["pairs/2026-w46.jsonl"] == {"excluded": True}
    assert (list(found), found["pairs/2026-w47.csv"]["rows"]) == (["pairs/2026-w46.jsonl", "pairs/2026-w47.csv"], 31)
    Path("exclude.txt").write_text("source pairs/2026-w46.jsonl\nsource pairs/2026-w47.csv\n")
    with pytest.raises(InputError, match=r"exclude.txt excludes all of pairs: name another source as prepare.pref"):
        prepare(params_with(**sources))


def test_a_prompt_of_several_files_is_one_with_the_references_of_all():
    Path("asked").mkdir()
    rows = [{"prompt": f"q{n}", "references": [f"a{n}"]} for n in range(30)]
    write_rows("asked/a.jsonl", rows)
    write_rows("asked/b.jsonl", [{"prompt": "q3", "references": ["other"]}])
    prepare(params_with(**four_sources() | {"prompts": "asked"}))
    records = records_of(PREPARED, "prompts")
    assert len(records) == 30
    [merged] = [record for record in records if record.prompt[-1]["content"] == "q3"]
    assert (merged.source, merged.references) == ("asked/a.jsonl", ["a3", "other"])


def test_a_fault_in_a_folder_names_the_file_and_row():
    folder = weekly_pairs()
    with Path(folder, "2026-w47.csv").open("a") as file:
        file.write("no\n")
    with pytest.raises(InputError, match=r"^pairs/2026-w47.csv row 33 \(line 33\) has 1 fields"):
        prepare(params_with(**four_sources() | {"preferences": folder}))
    assert not PREPARED.exists()
