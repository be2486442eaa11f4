import json
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.data.answers import Answer, answers_file, read_answers, write_answers

FILE = Path("reports/ppo/answers.jsonl")
ANSWERS = [Answer(step, prompt, [3, 1], -0.5, 1.0) for step in (0, 4) for prompt in ("a", "b")]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_answers("ppo", ANSWERS)


def test_what_was_written_is_read_by_mark():
    assert answers_file("ppo") == FILE
    assert read_answers("ppo") == {0: ANSWERS[:2], 4: ANSWERS[2:]}


@pytest.mark.parametrize("answers", [ANSWERS[:2], ANSWERS[:3], [*ANSWERS[:2], ANSWERS[3], ANSWERS[2]]])
def test_a_mark_without_the_others_prompts_is_damage(answers: list[Answer]):
    write_answers("ppo", answers)
    with pytest.raises(
        InputError, match=r"answers.jsonl is damaged, an evaluation point lacks answers: delete it and run dvc repro"
    ):
        read_answers("ppo")


def test_a_training_without_evaluation_points_has_no_answers():
    write_answers("ppo", [])
    assert read_answers("ppo") == {}


@pytest.mark.parametrize("line", ["{", json.dumps(ANSWERS[0]._asdict() | {"more": 1}), "{}"])
def test_a_row_of_another_shape_is_named(line: str):
    FILE.write_text(FILE.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"answers.jsonl row 5 is damaged"):
        read_answers("ppo")


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"reports/dpo/answers.jsonl does not exist: run the stage that writes it"):
        read_answers("dpo")
