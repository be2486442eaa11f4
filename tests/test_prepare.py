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

from tasks.common.errors import InputError
from tasks.common.files import METRICS, PREPARED
from tasks.data.records import PAIRS, TYPES, read_prompts
from tasks.data.shapes.convert import ShapedRow
from tasks.prepare import LEFT_OUT, choose, distinct_prompts, prepare
from tasks.settings.params import NO_ROWS, Params, parse_params
from tests.conftest import EXAMPLE, OF_PEOPLE, records_of

PROJECT = Path(__file__).parents[1]
TRUTHFULQA = PROJECT / "../shared/data/truthfulqa"
OUTPUTS = [PREPARED / f"{kind}.jsonl" for kind in TYPES]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()


def settings_with(**sources: Any) -> dict[str, Any]:
    """params.yaml with wide held-out shares, and each named kind read from a path or with other settings."""
    settings: dict[str, Any] = yaml.safe_load((PROJECT / "params.yaml").read_text())
    settings["prepare"]["split"] = {"validation": 0.3, "test": 0.3}
    for each in OF_PEOPLE:
        settings["prepare"][each]["source"] = str(PROJECT / EXAMPLE)
        settings["prepare"][each]["options"]["rows"] = 40
    for kind, change in sources.items():
        settings["prepare"][kind] |= change if isinstance(change, dict) else {"source": str(change)}
    return settings


def params_with(**sources: Any) -> Params:
    return parse_params(settings_with(**sources))


def write_rows(path: str, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def four_sources(count: int = 30) -> dict[str, str]:
    return {
        "demonstrations": write_rows("d.jsonl", [{"prompt": f"q{n}", "response": f"a{n}"} for n in range(count)]),
        "preferences": write_rows(
            "p.jsonl", [{"prompt": f"q{n}", "chosen": f"a{n}", "rejected": "no"} for n in range(count)]
        ),
        "ratings": write_rows(
            "t.jsonl", [{"prompt": f"q{n}", "response": f"a{n}", "label": True} for n in range(count)]
        ),
        "prompts": write_rows("r.jsonl", [{"prompt": f"q{n}", "references": [f"a{n}"]} for n in range(count)]),
    }


def metrics() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((METRICS / "prepare.json").read_text())
    return content


def output_bytes() -> list[bytes]:
    return [path.read_bytes() for path in (*OUTPUTS, METRICS / "prepare.json")]


def test_a_kind_that_nothing_learns_from_needs_no_rows():
    prepare(params_with(ratings={"source": NO_ROWS}))
    assert (PREPARED / "ratings.jsonl").read_bytes() == b""
    assert metrics()["ratings"] | {"sources": {}, "records": 0, "rows_read": 0} == metrics()["ratings"]


def test_ratings_at_the_threshold_are_left_out_and_counted():
    rows = [{"prompt": f"q{n}", "response": "a", "rating": n % 3} for n in range(60)]
    prepare(params_with(**four_sources() | {"ratings": {"source": write_rows("n.jsonl", rows), "threshold": 1.0}}))
    assert metrics()["ratings"]["left_out"] == {"tie": 20}
    labels = {record.prompt[0]["content"]: record.desirable for record in records_of(PREPARED, "ratings")}
    assert labels == {f"q{n}": n % 3 == 2 for n in range(60) if n % 3 != 1}
    line = json.loads((PREPARED / LEFT_OUT).read_text().splitlines()[0])
    assert (line["file"], line["row"], line["reason"]) == ("ratings.jsonl", 2, "tie")


def test_rows_of_a_python_file():
    prepare(params_with())
    assert {path.name for path in PREPARED.iterdir()} == {path.name for path in OUTPUTS} | {LEFT_OUT}
    assert (PREPARED / LEFT_OUT).read_bytes() == b""
    assert metrics()["demonstrations"]["rows_read"] == 40
    assert {record.source for record in records_of(PREPARED, "preferences")} == {
        "orders.py"
    }  # by its name: it lies outside this folder
    content = hashlib.sha256((PROJECT / EXAMPLE).read_bytes()).hexdigest()
    assert metrics()["prompts"]["sources"] == {"orders.py": {"rows": 40, "sha256": content, "license": "apache-2.0"}}


def test_the_same_prompt_is_in_the_same_split_of_all_files():
    prepare(params_with(**four_sources()))
    splits = [
        {record.prompt[0]["content"]: record.split for record in records}
        for records in (records_of(PREPARED, kind) for kind in OF_PEOPLE)
    ]
    assert splits[0] == splits[1] == splits[2]
    assert set(splits[0].values()) == {"train", "validation", "test"}


def test_ties_are_left_out_and_counted():
    rows = [
        {"prompt": f"q{n}", "response_a": f"a{n}", "response_b": "no", "preference": "AB"[n % 2] if n % 3 else "tie"}
        for n in range(60)
    ]
    prepare(params_with(**four_sources() | {"preferences": write_rows("v.jsonl", rows)}))
    records = records_of(PREPARED, "preferences")
    assert {record.chosen == "no" for record in records} == {True, False}
    assert [record.row for record in records] == [n + 1 for n in range(60) if n % 3]
    assert [metrics()["preferences"][name] for name in ("rows_read", "rows_kept")] == [60, 40]
    assert [metrics()[kind]["left_out"] for kind in ("preferences", "demonstrations")] == [{"tie": 20}, {}]


def test_turns_of_one_conversation_share_a_split():
    turns = [{"role": role, "content": "and?"} for role in ("assistant", "user") * 3]
    rows = [{"messages": [{"role": "user", "content": f"q{n}"}, *turns]} for n in range(30)]
    prepare(params_with(**four_sources() | {"demonstrations": write_rows("m.jsonl", rows)}))
    records = records_of(PREPARED, "demonstrations")
    assert len(records) == 90  # 30 conversations of three answers
    assert len({(record.row, record.split) for record in records}) == 30
    assert metrics()["demonstrations"]["rows_kept"] == 30
    assert metrics()["demonstrations"]["records"] == 90


def test_metrics_count_rows_splits_and_content():
    sources = four_sources()
    prepare(params_with(**sources))
    for kind, path in sources.items():
        found = metrics()[kind]
        assert (found["rows_read"], found["rows_kept"], found["records"]) == (30, 30, 30)
        assert found["train"] + found["validation"] + found["test"] == 30
        content = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        assert found["sources"] == {path: {"rows": 30, "sha256": content}}
    assert metrics()["demonstrations"]["test"] == len(records_of(PREPARED, "demonstrations", "test"))


def test_same_input_gives_the_same_bytes():
    params = params_with(**four_sources())
    prepare(params)
    first = output_bytes()
    prepare(params)
    assert output_bytes() == first


def test_place_of_the_data_is_not_in_the_outputs(tmp_path_factory):
    relative = params_with(**four_sources())
    prepare(relative)
    first = output_bytes()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    moved = {kind: Path(name).rename(elsewhere / name) for kind, name in four_sources().items()}
    prepare(params_with(**moved))
    assert output_bytes() == first


def test_however_the_path_is_spelt_the_bytes_are_the_same():
    Path("raw").mkdir()
    found = []
    for place in ("raw", "./raw//", str(Path("raw").absolute()), f"../{Path.cwd().name}/raw"):
        sources = {
            kind: f"{place}/{Path(name).replace(Path('raw', name)).name}" for kind, name in four_sources().items()
        }
        prepare(params_with(**sources))
        found.append(output_bytes())
    assert found == [found[0]] * 4
    assert records_of(PREPARED, "preferences")[0].source == "raw/p.jsonl"


def test_ids_and_splits_do_not_depend_on_the_other_rows():
    sources = four_sources()
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
    sources: dict[str, Any] = {kind: {"source": path, "limit": 20} for kind, path in four_sources(100).items()}
    prepare(params_with(**sources))
    assert [metrics()[kind]["rows_read"] for kind in sources] == [100, 100, 100, 100]
    assert [metrics()[kind]["records"] for kind in sources] == [20, 20, 20, 20]


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


def test_a_category_is_recorded_and_changes_neither_ids_nor_what_limit_chooses():
    plain = [{"prompt": f"q{n}", "references": [f"a{n}"]} for n in range(100)]
    labelled = [row | {"topic": f"kind {n % 3}"} for n, row in enumerate(plain)]
    others, found = four_sources(100), []
    for rows, columns in ((plain, {}), (labelled, {"category": "topic"})):
        source = {"source": write_rows("r.jsonl", rows), "columns": columns, "limit": 40}
        prepare(params_with(**others | {"prompts": source}))
        found.append(read_prompts(PREPARED))
    without, with_category = found
    assert {record.category for record in without} == {None}
    assert all(record.category == f"kind {int(record.prompt[0]['content'][1:]) % 3}" for record in with_category)
    assert [record._replace(category=None) for record in with_category] == without


def test_an_excluded_prompt_is_left_out_whatever_its_category():
    sources = four_sources()
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
    sources = four_sources()
    rows = [json.loads(line) for line in Path(sources[kind]).read_text().splitlines()]
    twice = write_rows("twice.jsonl", rows + [row | {"response": "another"} for row in rows if "response" in row])
    prepare(params_with(**sources | {"prompts": twice}))
    assert [len(record.references) for record in read_prompts(PREPARED)] == [references] * 30


def test_column_map():
    rows = [{"frage": f"q{n}", "antwort": f"a{n}"} for n in range(30)]
    mapped = {"source": write_rows("map.jsonl", rows), "columns": {"prompt": "frage", "response": "antwort"}}
    prepare(params_with(**four_sources() | {"demonstrations": mapped}))
    assert records_of(PREPARED, "demonstrations")[0].response == "a0"


def test_column_map_that_the_example_does_not_have():
    with pytest.raises(InputError, match=r"maps prompt to 'frage', but the columns of .*orders\.py are"):
        prepare(params_with(prompts={"columns": {"prompt": "frage"}}))


def test_one_pair_cannot_be_split():
    pair = write_rows("one.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    with pytest.raises(InputError) as error:
        prepare(params_with(**four_sources() | {"preferences": pair}))
    # (1 - .3)^12 = .0138 and (1 - .3)^13 = .0097, and (1 - .4)^n is smaller: 13 fill the held-out splits.
    assert str(error.value).startswith("one.jsonl: its 1 preferences leave nothing for ")
    assert "about 13 distinct prompts fill every split" in str(error.value)
    assert not PREPARED.exists()


def test_many_rows_of_one_prompt_cannot_be_split():
    rows = [{"prompt": "q", "response": f"a{n}"} for n in range(30)]
    with pytest.raises(InputError, match="its 30 demonstrations leave nothing for"):
        prepare(params_with(**four_sources() | {"demonstrations": write_rows("d.jsonl", rows)}))


@pytest.mark.parametrize("bad", ['{"prompt": "q", "chosen": "a"', '{"prompt": "q", "chosen": 1, "rejected": "b"}'])
def test_bad_row_leaves_earlier_outputs_as_they_were(bad):
    sources = four_sources()
    prepare(params_with(**sources))
    before = output_bytes()
    with Path(sources["preferences"]).open("a") as file:
        file.write(bad)
    with pytest.raises(InputError, match=r"p\.jsonl row 31"):
        prepare(params_with(**sources))
    assert output_bytes() == before
    assert not [path for path in Path("data").iterdir() if path != PREPARED]  # no draft is left


def test_unwritable_metrics_leave_earlier_records_as_they_were(monkeypatch):
    sources = four_sources()
    prepare(params_with(**sources))
    before = output_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tasks.prepare.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(params_with(**four_sources(60)))
    assert output_bytes() == before


def test_process_ends_with_code_2_and_one_sentence():
    settings = settings_with(preferences="no/such.csv")
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(
        [sys.executable, "-m", "tasks.prepare"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "prepare: no/such.csv does not exist: fix the path of the source in params.yaml\n"
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


def test_ai_pairs_on_held_out_prompts_are_left_out_and_counted_and_people_s_stay():
    pairs = [{"prompt": f"q{n}", "chosen": f"a{n}", "rejected": "no", "annotator": "reward:r"} for n in range(30)]
    prepare(params_with(**four_sources() | {"ai_preferences": write_rows("ai.jsonl", pairs)}))
    of_people, of_ai = (records_of(PREPARED, kind) for kind in PAIRS)
    training = {record.prompt[0]["content"]: record for record in of_people if record.split == "train"}
    assert 0 < len(of_ai) < 30
    assert [record.prompt[0]["content"] for record in of_ai] == list(training)
    assert {record.split for record in of_ai} == {"train"}
    # A pair has one id, whatever chose: what excludes it excludes it from both files.
    assert [record.id for record in of_ai] == [record.id for record in training.values()]
    assert metrics()["ai_preferences"]["left_out"] == {"held_out": 30 - len(of_ai)}
    lines = [json.loads(line) for line in (PREPARED / LEFT_OUT).read_text().splitlines()]
    assert {(line["file"], line["reason"]) for line in lines} == {("ai_preferences.jsonl", "held_out")}


def test_ai_pairs_on_held_out_prompts_alone_are_refused():
    prepare(params_with(**four_sources()))
    held_out = [record for record in records_of(PREPARED, "preferences") if record.split != "train"]
    pairs = [{"prompt": record.prompt, "chosen": "yes", "rejected": "no"} for record in held_out]
    with pytest.raises(InputError, match=r"ai.jsonl: its 0 ai_preferences, without the .* leave nothing for train"):
        prepare(params_with(**four_sources() | {"ai_preferences": write_rows("ai.jsonl", pairs)}))
