"""The stage `prepare`: canonical files, one split a prompt, stable ids and choices, nothing half-written."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.data import example
from tasks.data.files import METRICS, PREPARED
from tasks.data.records import TAGS, TYPES, read_prompts
from tasks.data.shapes import ShapedRow
from tasks.errors import InputError
from tasks.params import Params, parse_params
from tasks.prepare import choose, distinct_prompts, prepare
from tests.conftest import records_of

PROJECT = Path(__file__).parents[1]
TRUTHFULQA = PROJECT / "../shared/data/truthfulqa"
OUTPUTS = [PREPARED / f"{kind}.jsonl" for kind in ("demonstrations", "preferences", "prompts")]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()


def settings_with(**sources: Any) -> dict[str, Any]:
    """params.yaml with wide held-out shares, and each named kind read from a path or with other settings."""
    settings: dict[str, Any] = yaml.safe_load((PROJECT / "params.yaml").read_text())
    settings["prepare"]["split"] = {"validation": 0.3, "test": 0.3}
    settings["prepare"]["example"] |= {"demonstrations": 40, "preferences": 40, "prompts": 40}
    for kind, change in sources.items():
        settings["prepare"][kind] |= change if isinstance(change, dict) else {"source": str(change)}
    return settings


def params_with(**sources: Any) -> Params:
    return parse_params(settings_with(**sources))


def write_rows(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def three_sources(count: int = 30) -> dict[str, str]:
    return {
        "demonstrations": write_rows("d.jsonl", [{"prompt": f"q{n}", "response": f"a{n}"} for n in range(count)]),
        "preferences": write_rows(
            "p.jsonl", [{"prompt": f"q{n}", "chosen": f"a{n}", "rejected": "no"} for n in range(count)]
        ),
        "prompts": write_rows("r.jsonl", [{"prompt": f"q{n}", "references": [f"a{n}"]} for n in range(count)]),
    }


def metrics() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((METRICS / "prepare.json").read_text())
    return content


def output_bytes() -> list[bytes]:
    return [path.read_bytes() for path in (*OUTPUTS, METRICS / "prepare.json")]


def test_built_in_example():
    prepare(params_with())
    assert {path.name for path in PREPARED.iterdir()} == {path.name for path in OUTPUTS}
    assert metrics()["demonstrations"]["rows_read"] == 40
    assert {record.source for record in records_of(PREPARED, "preferences")} == {"tasks/data/example.py"}
    content = hashlib.sha256(Path(example.__file__).read_bytes()).hexdigest()
    assert metrics()["prompts"]["sources"] == {"tasks/data/example.py": {"rows": 40, "sha256": content}}


def test_the_same_prompt_is_in_the_same_split_of_all_files():
    prepare(params_with(**three_sources()))
    splits = [
        {record.prompt[0]["content"]: record.split for record in records}
        for records in (records_of(PREPARED, kind) for kind in TYPES)
    ]
    assert splits[0] == splits[1] == splits[2]
    assert set(splits[0].values()) == {"train", "validation", "test"}


def test_turns_of_one_conversation_share_a_split():
    turns = [{"role": role, "content": "and?"} for role in ("assistant", "user") * 3]
    rows = [{"messages": [{"role": "user", "content": f"q{n}"}, *turns]} for n in range(30)]
    prepare(params_with(**three_sources() | {"demonstrations": write_rows("m.jsonl", rows)}))
    records = records_of(PREPARED, "demonstrations")
    assert len(records) == 90  # 30 conversations of three answers
    assert len({(record.row, record.split) for record in records}) == 30
    assert metrics()["demonstrations"]["rows_kept"] == 30
    assert metrics()["demonstrations"]["records"] == 90


def test_metrics_count_rows_splits_and_content():
    sources = three_sources()
    prepare(params_with(**sources))
    for kind, path in sources.items():
        found = metrics()[kind]
        assert (found["rows_read"], found["rows_kept"], found["records"]) == (30, 30, 30)
        assert found["train"] + found["validation"] + found["test"] == 30
        content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        assert found["sources"] == {path: {"rows": 30, "sha256": content}}
    assert metrics()["demonstrations"]["test"] == len(records_of(PREPARED, "demonstrations", "test"))


def test_same_input_gives_the_same_bytes():
    params = params_with(**three_sources())
    prepare(params)
    first = output_bytes()
    prepare(params)
    assert output_bytes() == first


def test_place_of_the_data_is_not_in_the_outputs(tmp_path_factory):
    relative = params_with(**three_sources())
    prepare(relative)
    first = output_bytes()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    moved = {kind: Path(name).rename(elsewhere / name) for kind, name in three_sources().items()}
    prepare(params_with(**moved))
    assert output_bytes() == first


def test_however_the_path_is_spelt_the_bytes_are_the_same():
    Path("raw").mkdir()
    found = []
    for place in ("raw", "./raw//", str(Path("raw").absolute()), f"../{Path.cwd().name}/raw"):
        sources = {
            kind: f"{place}/{Path(name).replace(Path('raw', name)).name}" for kind, name in three_sources().items()
        }
        prepare(params_with(**sources))
        found.append(output_bytes())
    assert found == [found[0]] * 4
    assert records_of(PREPARED, "preferences")[0].source == "raw/p.jsonl"


def test_ids_and_splits_do_not_depend_on_the_other_rows():
    sources = three_sources()
    prepare(params_with(**sources))
    before = {
        record.prompt[0]["content"]: (record.id, record.split) for record in records_of(PREPARED, "demonstrations")
    }
    rows = [{"prompt": f"q{n}", "response": f"a{n}"} for n in range(50)]
    random.Random(1).shuffle(rows)
    prepare(params_with(**sources | {"demonstrations": write_rows("d.jsonl", rows)}))
    after = {
        record.prompt[0]["content"]: (record.id, record.split) for record in records_of(PREPARED, "demonstrations")
    }
    assert {prompt: after[prompt] for prompt in before} == before
    assert len({name for name, _ in after.values()}) == 50


def test_limit_chooses_by_content():
    rows = [ShapedRow("r.jsonl", n, [{"prompt": f"q{n}"}]) for n in range(1, 101)]
    chosen = choose(rows, 20)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert chosen == choose(shuffled, 20)
    assert [row.row for row in chosen] == sorted(row.row for row in chosen)
    assert max(row.row for row in chosen) > 50  # not the first ones
    assert set(map(str, choose(rows, 10))) <= set(map(str, chosen))
    assert choose(rows, 1000) == rows


def test_limit_of_the_stage():
    sources: dict[str, Any] = {kind: {"source": path, "limit": 20} for kind, path in three_sources(100).items()}
    prepare(params_with(**sources))
    assert [metrics()[kind]["rows_read"] for kind in sources] == [100, 100, 100]
    assert [metrics()[kind]["records"] for kind in sources] == [20, 20, 20]


def test_prompts_are_distinct_and_gather_their_references():
    rows = [
        ShapedRow("r.jsonl", 1, [{"prompt": ["p"], "references": ["a"]}]),
        ShapedRow("r.jsonl", 2, [{"prompt": ["q"], "references": []}]),
    ]
    rows += [ShapedRow("r.jsonl", 3, [{"prompt": ["p"], "references": ["b", "a"]}])]
    assert list(distinct_prompts(rows)) == [
        ShapedRow("r.jsonl", 1, [{"prompt": ["p"], "references": ["a", "b"]}]),
        ShapedRow("r.jsonl", 2, [{"prompt": ["q"], "references": []}]),
    ]


def test_a_prompt_has_the_category_of_its_first_row():
    rows = [
        ShapedRow("r.jsonl", number, [{"prompt": ["p"], "references": []}], category)
        for number, category in enumerate(("law", None, "tax"), start=1)
    ]
    assert [row.tag for row in distinct_prompts(rows)] == ["law"]
    assert [row.tag for row in distinct_prompts(rows[1:])] == [None]


def test_a_category_is_kept_and_changes_neither_ids_nor_what_limit_chooses():
    plain = [{"prompt": f"q{n}", "references": [f"a{n}"]} for n in range(100)]
    labelled = [row | {"topic": f"kind {n % 3}"} for n, row in enumerate(plain)]
    others, found = three_sources(100), []
    for rows, columns in ((plain, {}), (labelled, {"category": "topic"})):
        source = {"source": write_rows("r.jsonl", rows), "columns": columns, "limit": 40}
        prepare(params_with(**others | {"prompts": source}))
        found.append(read_prompts(PREPARED))
    without, with_category = found
    assert {record.category for record in without} == {None}
    assert all(record.category == f"kind {int(record.prompt[0]['content'][1:]) % 3}" for record in with_category)
    assert [record._replace(category=None) for record in with_category] == without


def test_an_excluded_prompt_is_left_out_whatever_its_category():
    sources = three_sources()
    prepare(params_with(**sources))
    gone = read_prompts(PREPARED)[0]
    Path("exclude.txt").write_text(f"row {gone.id}\n")
    rows = [{"prompt": f"q{n}", "references": [f"a{n}"], "category": "law"} for n in range(30)]
    prepare(params_with(**sources | {"prompts": write_rows("r.jsonl", rows)}))
    left = read_prompts(PREPARED)
    assert len(left) == 29
    assert gone.prompt not in [record.prompt for record in left]
    assert {record.category for record in left} == {"law"}


@pytest.mark.parametrize(("kind", "references"), [("demonstrations", 2), ("preferences", 0)])
def test_prompts_of_a_file_made_for_another_kind(kind, references):
    sources = three_sources()
    rows = [json.loads(line) for line in Path(sources[kind]).read_text().splitlines()]
    twice = write_rows("twice.jsonl", rows + [row | {"response": "another"} for row in rows if "response" in row])
    prepare(params_with(**sources | {"prompts": twice}))
    assert [len(record.references) for record in read_prompts(PREPARED)] == [references] * 30


def test_column_map():
    rows = [{"frage": f"q{n}", "antwort": f"a{n}"} for n in range(30)]
    mapped = {"source": write_rows("map.jsonl", rows), "columns": {"prompt": "frage", "response": "antwort"}}
    prepare(params_with(**three_sources() | {"demonstrations": mapped}))
    assert records_of(PREPARED, "demonstrations")[0].response == "a0"


def test_column_map_that_the_example_does_not_have():
    with pytest.raises(InputError, match=r"maps prompt to 'frage', but the columns of tasks/data/example\.py are"):
        prepare(params_with(prompts={"columns": {"prompt": "frage"}}))


def test_one_pair_cannot_be_split():
    pair = write_rows("one.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(InputError) as error:
        prepare(params_with(**three_sources() | {"preferences": pair}))
    # (1 - .3)^12 = .0138 and (1 - .3)^13 = .0097, and (1 - .4)^n is smaller: 13 fill the held-out splits.
    assert str(error.value).startswith("one.jsonl: its 1 preferences leave nothing for ")
    assert "about 13 distinct prompts fill every split" in str(error.value)
    assert not PREPARED.exists()


def test_many_rows_of_one_prompt_cannot_be_split():
    rows = [{"prompt": "q", "response": f"a{n}"} for n in range(30)]
    with pytest.raises(InputError, match="its 30 demonstrations leave nothing for"):
        prepare(params_with(**three_sources() | {"demonstrations": write_rows("d.jsonl", rows)}))


@pytest.mark.parametrize("bad", ['{"prompt": "q", "chosen": "a"', '{"prompt": "q", "chosen": 1, "rejected": "b"}'])
def test_bad_row_leaves_earlier_outputs_as_they_were(bad):
    sources = three_sources()
    prepare(params_with(**sources))
    before = output_bytes()
    with Path(sources["preferences"]).open("a") as file:
        file.write(bad)
    with pytest.raises(InputError, match=r"p\.jsonl row 31"):
        prepare(params_with(**sources))
    assert output_bytes() == before
    assert not [path for path in Path("data").iterdir() if path != PREPARED]  # no draft is left


def test_unwritable_metrics_leave_earlier_records_as_they_were(monkeypatch):
    sources = three_sources()
    prepare(params_with(**sources))
    before = output_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tasks.prepare.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(params_with(**three_sources(60)))
    assert output_bytes() == before


def test_process_ends_with_code_2_and_one_sentence():
    settings = settings_with(preferences="no/such.csv")
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(
        [sys.executable, "-m", "tasks.prepare"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "prepare: no/such.csv does not exist: mend the path of the source in params.yaml\n"
    assert not PREPARED.exists()


def test_stage_needs_no_heavy_library():
    code = (
        "import sys, tasks.prepare; print({'torch', 'transformers', 'mlflow', 'pandas', 'datasets'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "set()\n"


@pytest.mark.skipif(not TRUTHFULQA.exists(), reason="../shared/data/truthfulqa is not here")
def test_truthfulqa():
    prepare(
        params_with(
            demonstrations=TRUTHFULQA / "sft_train.jsonl",
            preferences={"source": str(TRUTHFULQA / "pairs_train.jsonl"), "limit": 300},
            prompts=TRUTHFULQA / "refs_train.jsonl",
        )
    )
    assert metrics()["preferences"]["records"] == 300
    held_out = {record.prompt[0]["content"] for record in read_prompts(PREPARED, "test")}
    trained = {record.prompt[0]["content"] for record in records_of(PREPARED, "demonstrations", "train")}
    trained |= {record.prompt[0]["content"] for record in records_of(PREPARED, "preferences", "train")}
    assert held_out and trained and not held_out & trained


# --- Exclusions


def lines_of(kind: str, *, without: str = "") -> list[dict[str, Any]]:
    """The records of a kind, without those of a prompt, and without their row, which counts the rows before."""
    lines = [json.loads(line) for line in (PREPARED / f"{kind}.jsonl").read_text().splitlines()]
    return [{**line, "row": 0} for line in lines if line["prompt"][0]["content"] != without]


@pytest.mark.parametrize("limit", [None, 20])
@pytest.mark.parametrize("kind", ["demonstrations", "preferences", "prompts"])
def test_an_excluded_row_is_as_if_the_source_did_not_hold_it(kind, limit):
    sources = three_sources(40)
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
    kept = [line for line in before if line["id"] != gone["id"]]
    assert [line for line in excluded if line in kept] == kept  # nothing else moves, nor changes its split

    Path("exclude.txt").write_text("")
    rows = Path(sources[kind]).read_text().splitlines(keepends=True)
    said = json.dumps(gone["prompt"][0]["content"])
    Path(sources[kind]).write_text("".join(row for row in rows if said not in row))
    prepare(params_with(**changes))
    assert lines_of(kind) == excluded


def test_a_prompt_of_several_rows_is_excluded_as_a_whole():
    sources = three_sources()
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
    sources = three_sources() | {"demonstrations": write_rows("m.jsonl", rows)}
    prepare(params_with(**sources))
    first, second = (record for record in records_of(PREPARED, "demonstrations") if record.row == 7)
    Path("exclude.txt").write_text(f"row {first.id}\n")
    prepare(params_with(**sources))
    assert [record for record in records_of(PREPARED, "demonstrations") if record.row == 7] == [second]
    assert metrics()["demonstrations"]["excluded"] == 1


def annotated_sources(count: int = 40) -> dict[str, str]:
    """Sources whose answers are by annotator 0, 1, 2 or nobody in turn, and prompts in categories of those names."""
    sources = three_sources(count)
    for kind, field in TAGS.items():
        rows = [json.loads(line) for line in Path(sources[kind]).read_text().splitlines()]
        write_rows(sources[kind], [row | ({field: n % 4} if n % 4 < 3 else {}) for n, row in enumerate(rows)])
    return sources


@pytest.mark.parametrize("kind", ["demonstrations", "preferences"])
def test_an_annotator_is_kept_and_changes_neither_ids_nor_splits_nor_what_limit_chooses(kind):
    found = []
    for make in (three_sources, annotated_sources):
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
    prepare(params_with(**three_sources()))
    assert "exclude.txt excludes annotator 1, which nothing matches: it may have been deleted" in caplog.text


def test_an_excluded_row_that_no_source_holds_is_named(caplog):
    Path("exclude.txt").write_text("row 0123456789abcdef\n")
    prepare(params_with(**three_sources()))
    assert "exclude.txt excludes row 0123456789abcdef, which nothing matches: it may have been deleted" in caplog.text
    assert [metrics()[kind]["excluded"] for kind in metrics()] == [0, 0, 0]


def test_an_excluded_source_is_not_read():
    Path("exclude.txt").write_text("source p.jsonl\nsource other.jsonl\n")
    with pytest.raises(InputError, match=r"exclude.txt excludes all of p.jsonl: name another source as prepare.pref"):
        prepare(params_with(**three_sources()))
    assert not PREPARED.exists()


def test_an_excluded_source_that_is_none_is_named(caplog):
    Path("exclude.txt").write_text("source gone.jsonl\n")
    prepare(params_with(**three_sources()))
    assert "exclude.txt excludes source gone.jsonl, which nothing matches" in caplog.text


@pytest.mark.parametrize("name", ["pairs", "./pairs/", "{here}/pairs"])
def test_a_folder_is_excluded_by_its_name(name, caplog):
    sources = three_sources() | {"preferences": weekly_pairs()}
    Path("exclude.txt").write_text(f"source {name.format(here=Path.cwd())}\n")
    with pytest.raises(InputError, match=r"exclude.txt excludes all of pairs: name another source"):
        prepare(params_with(**sources))
    prepare(params_with(**sources | {"preferences": "p.jsonl"}))
    assert "exclude.txt excludes source pairs, which nothing matches" in caplog.text


def test_who_excludes_all_rows_is_told_so():
    sources = three_sources()
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
    prepare(params_with(**three_sources() | {"preferences": weekly_pairs()}))
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
    prepare(params_with(**three_sources() | {"preferences": chosen}))
    places = [(record.source, record.row) for record in records_of(PREPARED, "preferences")]
    assert len(places) == 40
    assert places == sorted(places)
    assert len({source for source, _ in places}) == 2


def test_a_file_of_a_folder_can_be_excluded_and_then_the_others():
    sources = three_sources() | {"preferences": weekly_pairs()}
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
    prepare(params_with(**three_sources() | {"prompts": "asked"}))
    records = records_of(PREPARED, "prompts")
    assert len(records) == 30
    [merged] = [record for record in records if record.prompt[-1]["content"] == "q3"]
    assert (merged.source, merged.references) == ("asked/a.jsonl", ["a3", "other"])


def test_a_fault_in_a_folder_names_the_file_and_row():
    folder = weekly_pairs()
    with Path(folder, "2026-w47.csv").open("a") as file:
        file.write("no\n")
    with pytest.raises(InputError, match=r"^pairs/2026-w47.csv row 33 \(line 33\) has 1 fields"):
        prepare(params_with(**three_sources() | {"preferences": folder}))
    assert not PREPARED.exists()
