"""What `prepare` leaves out, ignores and refuses of rows: each is counted and reported, none dropped without a word."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import PREPARED
from tasks.data.records import read_prompts
from tasks.prepare import LEFT_OUT, prepare
from tests.test_prepare import metrics, params_with, write_rows


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()


def left_out() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PREPARED / LEFT_OUT).read_text().splitlines()]


def test_rows_that_speak_against_themselves_are_left_out_counted_and_written_down(caplog):
    rows = [{"prompt": f"q{n}", "completion": f"a{n}", "label": n % 3 != 0} for n in range(60)]
    pairs: list[dict[str, Any]] = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(63)]
    pairs[60] |= {"score_chosen": 1, "score_rejected": 2}
    pairs[61] |= {"score_chosen": 2, "score_rejected": 2}
    pairs[62] |= {"train": False}
    prepare(params_with(demonstrations=write_rows("d.jsonl", rows), preferences=write_rows("p.jsonl", pairs)))
    assert metrics()["demonstrations"]["left_out"] == {"label": 20}
    assert metrics()["demonstrations"]["records"] == 40
    assert metrics()["preferences"]["left_out"] == {"equal_scores": 1, "scores": 1, "weight": 1}
    assert metrics()["preferences"]["records"] == 60
    assert metrics()["prompts"]["left_out"] == {}
    assert left_out()[19:] == [
        {"file": file, "source": source, "row": row, "reason": reason, "detail": detail}
        for file, source, row, reason, detail in (
            ("demonstrations.jsonl", "d.jsonl", 58, "label", "its label says that the answer is bad"),
            ("preferences.jsonl", "p.jsonl", 61, "scores", "score_chosen is 1 and score_rejected 2"),
            ("preferences.jsonl", "p.jsonl", 62, "equal_scores", "score_chosen is 2 and score_rejected 2"),
            ("preferences.jsonl", "p.jsonl", 63, "weight", "its train says that it is not to be learned"),
        )
    ]
    assert caplog.messages == [
        "demonstrations: 20 rows left out by what they say (label 20): see data/prepare/left_out.jsonl",
        "preferences: 3 rows left out by what they say (equal_scores 1, scores 1, weight 1): see "
        "data/prepare/left_out.jsonl",
    ]


def test_what_they_say_is_ignored_where_the_settings_say_so(caplog):
    rows = [{"prompt": f"q{n}", "completion": f"a{n}", "label": n % 5, "weight": 0.5} for n in range(60)]
    source = {"source": write_rows("d.jsonl", rows), "ignore": ["label", "weight", "note"]}
    prepare(params_with(demonstrations=source))
    found = metrics()["demonstrations"]
    assert (found["records"], found["left_out"], found["ignored"]) == (60, {}, {"label": 60, "weight": 60})
    assert caplog.messages == [
        "prepare.demonstrations.ignore names 'note', which no row has: it may be spelt otherwise"
    ]


def test_a_bad_answer_is_no_reference_but_its_prompt_is_a_prompt():
    rows = [{"prompt": f"q{n % 30}", "completion": f"a{n}", "label": n < 30} for n in range(60)]
    prepare(params_with(prompts=write_rows("d.jsonl", rows)))
    assert [record.references for record in read_prompts(PREPARED)] == [[f"a{n}"] for n in range(30)]


def test_columns_that_nothing_reads_are_reported_once_with_their_rows(caplog):
    rows = [{"prompt": f"q{n}", "response": "a", "id": n, **({"note": "n"} if n < 7 else {})} for n in range(30)]
    prepare(params_with(demonstrations=write_rows("d.jsonl", rows)))
    assert metrics()["demonstrations"]["unused"] == {"id": 30, "note": 7}
    assert caplog.messages == ["demonstrations: columns that nothing reads: 'id' (30 rows), 'note' (7 rows)"]


def test_a_file_with_many_bad_rows_tells_them_at_once():
    rows: list[dict[str, Any]] = [{"prompt": f"q{n}", "response": "a"} for n in range(30)]
    path = write_rows("d.jsonl", rows)
    bad = ['{"prompt": "q", "response": 4}', "{", '{"prompt": "q"}', '{"prompt": "q", "prompt": "r"}'] * 5
    Path(path).write_text(Path(path).read_text() + "\n".join(bad))
    with pytest.raises(InputError) as error:
        prepare(params_with(demonstrations=path))
    message = str(error.value)
    assert message.startswith("d.jsonl has 20 bad rows: rows 31, 35, 39: response is the number 4 where")
    assert "; rows 32, 36, 40: is not valid JSON" in message
    assert (
        "; rows 33, 37: the column response is missing; rows 34, 38: names the key 'prompt' twice in one object"
        in message
    )
    assert message.endswith("; and 10 more: fix or remove them, or rename or remove one")


def test_an_excluded_row_that_is_left_out_anyhow_is_no_warning(caplog):
    rows = [{"prompt": f"q{n}", "response": "a", "label": n < 29, "annotator": f"w{n}"} for n in range(30)]
    Path("exclude.txt").write_text("annotator w29\n")
    prepare(params_with(demonstrations=write_rows("d.jsonl", rows)))
    assert metrics()["demonstrations"]["left_out"] == {"label": 1}
    assert len(caplog.messages) == 1


def test_a_category_for_tests_alone_leaves_its_other_prompts_out():
    rows = [{"prompt": f"q{n}", "category": "riddle" if n % 2 else "sum"} for n in range(200)]
    source = {"source": write_rows("r.jsonl", rows)}
    prepare(params_with(prompts=source))
    before = read_prompts(PREPARED)
    prepare(params_with(prompts=source | {"test_only": ["Riddle"]}))
    after = read_prompts(PREPARED)
    assert after == [each for each in before if each.split == "test" or each.category == "sum"]
    gone = [each.row for each in before if each not in after]
    assert len(gone) > 50
    assert metrics()["prompts"]["left_out"] == {"test_only": len(gone)}
    assert [line["row"] for line in left_out()] == gone


def test_a_category_for_tests_alone_that_no_prompt_has_is_refused():
    rows = [{"prompt": f"q{n}", "category": "sum"} for n in range(60)]
    prompts = {"source": write_rows("r.jsonl", rows), "test_only": ["sums"]}
    with pytest.raises(InputError, match=r"no prompt has the category 'sums', which prepare\.prompts\.test_only in"):
        prepare(params_with(prompts=prompts))
    assert not PREPARED.exists()
