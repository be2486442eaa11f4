"""The stage reward_functions: what it copies, whom that makes stale, and what stops it."""

from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import VALIDATED, read_json
from tasks.data.records import write_records
from tasks.learning.ppo.rewards import prompts_on_disk
from tasks.reward_functions import reward_functions
from tasks.rewards.answered import Answered, answered
from tasks.rewards.copies import GROUND_TRUTH, MODEL_USE, TRAINING, read_copies
from tasks.rewards.sources import VERIFIERS_FOLDER
from tests.conftest import MakeParams, records_of, write_workspace_records

CODE = """
def short(answers):
    return [-len(answer) for answer in answers]

def known(answers, references):
    return [float(answer in some) for answer, some in zip(answers, references)]
"""
MODEL = {"name": "reward_model", "source": "model", "weight": 1.0}
SHORT = {"name": "brevity", "source": "mine/rules.py:short", "weight": -0.5}
KNOWN = {"name": "known", "source": "mine/rules.py:known"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_workspace_records()
    Path("mine").mkdir()
    Path("mine/rules.py").write_text(CODE)


def run(make_params: MakeParams, *training: dict[str, Any], ground_truth: list[dict[str, Any]] | None = None) -> None:
    settings = {"code": "mine", "training": list(training), "ground_truth": ground_truth or []}
    reward_functions(make_params(rewards=settings))


def files() -> dict[str, bytes]:
    return {path.as_posix(): path.read_bytes() for path in Path("data/reward_functions").rglob("*") if path.is_file()}


def test_the_copies_are_the_functions_under_their_names(make_params: MakeParams):
    run(make_params, MODEL, SHORT, ground_truth=[KNOWN])
    [learned], [known] = read_copies(TRAINING), read_copies(GROUND_TRUTH)
    assert (learned.name, learned.source, learned.arguments) == ("brevity", "mine/rules.py:short", ("answers",))
    assert (known.name, known.arguments) == ("known", ("answers", "references"))
    assert Path(TRAINING, "brevity.py").read_text() == CODE
    assert read_json(MODEL_USE) == {"reward_model": True}


def test_the_copy_of_a_verifier_has_its_options(make_params: MakeParams):
    right = {"name": "right", "source": "exact_match", "options": {"partial": True}, "weight": 1.0}
    run(make_params, right)
    [found] = read_copies(TRAINING)
    assert Path(TRAINING, "right.py").read_bytes() == (VERIFIERS_FOLDER / "exact_match.py").read_bytes()
    assert found(Answered([[]], ["so be it"], [[]], [["be it"]], [{}])) == [2 * 2 / 5]  # F1 of 3 words and 2


def test_data_that_a_function_names_change_its_copies_and_no_others(make_params: MakeParams):
    Path("mine/rules.py").write_text(CODE.replace("def short(answers)", "def short(answers, file)"))
    Path("words").mkdir()
    settings = {"code": "mine", "data": "words", "training": [SHORT | {"options": {"file": "./words/bad.txt"}}]}

    def written(text: str) -> dict[str, bytes]:
        Path("words/bad.txt").write_text(text)
        reward_functions(make_params(rewards=settings | {"ground_truth": [KNOWN]}))
        return files()

    before, again, after = written("a"), written("a"), written("b")
    assert before == again
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"data/reward_functions/training/functions.json"}
    lost = {"data": "nowhere", "training": [SHORT | {"options": {"file": "nowhere"}}], "ground_truth": []}
    with pytest.raises(InputError, match="nowhere does not exist"):
        reward_functions(make_params(rewards=settings | lost))


def test_what_is_not_learned_from_changes_nothing_that_is(make_params: MakeParams):
    run(make_params, MODEL, SHORT)
    before = files()
    run(make_params, {**MODEL, "weight": 3.0}, SHORT, ground_truth=[KNOWN])
    after = files()
    assert {path for path in after if before.get(path) != after[path]} == {
        "data/reward_functions/ground_truth/functions.json",
        "data/reward_functions/ground_truth/known.py",
    }


def test_without_the_model_it_is_written_down(make_params: MakeParams):
    run(make_params, SHORT)
    assert read_json(MODEL_USE) == {"reward_model": False}
    run(make_params, MODEL)
    assert read_copies(TRAINING) == []  # and the copy of before is gone
    assert "data/reward_functions/training/brevity.py" not in files()


@pytest.mark.parametrize("body", ["1 / len(answers[-1])", "len(references[99])", "float('nan')"])
def test_one_that_fails_on_held_out_prompts_stops_before_anything_is_written(make_params: MakeParams, body: str):
    run(make_params, SHORT)
    before = files()
    Path("mine/rules.py").write_text(CODE + f"\ndef bad(answers, references): return [{body} for _ in answers]\n")
    with pytest.raises(
        InputError, match=r"^mine/rules\.py:bad (raised|gave) .* for the answer of prompt validation\d \("
    ):
        run(make_params, SHORT, ground_truth=[{"name": "bad", "source": "mine/rules.py:bad"}])
    assert files() == before


def test_one_that_asks_for_tokens_is_not_tried_without_any(make_params: MakeParams):
    Path("mine/rules.py").write_text("def last(answer_ids): return [ids[-1] for ids in answer_ids]")
    run(make_params, {"name": "last", "source": "mine/rules.py:last", "weight": 1.0})
    assert [each.name for each in read_copies(TRAINING)] == ["last"]


def test_references_and_extra_columns_of_a_row_reach_the_function(make_params: MakeParams):
    prompts = [each._replace(columns={"key": each.id}) for each in records_of(VALIDATED, "prompts")]
    write_records(VALIDATED, "prompts", prompts)
    Path("mine/rules.py").write_text(
        "def keyed(columns, references, prompts):\n"
        "    return [float(each['key'].startswith('train')) for each in columns]\n"
    )
    run(make_params, {"name": "keyed", "source": "mine/rules.py:keyed", "weight": 1.0})
    [keyed] = read_copies(TRAINING)
    on_disk = prompts_on_disk(VALIDATED / "prompts.jsonl", "train")
    assert [prompt.columns for prompt in on_disk] == [{"key": f"train{number}"} for number in range(10)]
    texts = ["an answer"] * len(prompts)
    scores = keyed(answered(prompts, texts, [[1]] * len(prompts)))
    assert scores == [float(prompt.split == "train") for prompt in prompts]
