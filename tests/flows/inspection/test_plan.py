"""What `trueline plan` says before anything is trained."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.display.results import show_plan
from flows.inspection import plan
from flows.inspection.plan import gate_power, gate_warnings, plan_of
from flows.inspection.speed import Speed, measure_speed
from tasks.common.files import AI_VALIDATED, MODELS, PREPARED, VALIDATED
from tasks.common.lines import Lines
from tasks.data.checks.look import look
from tasks.data.encoding.tokens import load_tokenizer
from tasks.settings.params import Params
from tests.conftest import MakeParams

SPEED = Speed(trained_a_second=100.0, sampled_a_second=50.0, how="a test")

MEMORY: dict[str, Any] = {
    "device": {"memory_gb": 8, "number": 1, "is_gpu": False},
    "rows": {"row": 20, "prompt": 10},
    "matrix_tflops": None,
    "stages": [],
    "fits": True,
    "change": None,
}


@pytest.fixture(autouse=True)
def checkout(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows; their memory, which takes seconds to count, is that of a test."""
    monkeypatch.setattr(plan, "memory_plan", lambda *_: MEMORY)
    for folder in (VALIDATED, AI_VALIDATED):
        shutil.copytree(folder, PREPARED, dirs_exist_ok=True)


def given(_params: Params, _row: int, _prompt: int) -> Speed:
    return SPEED


def test_rows_and_limits_are_those_of_the_data(make_params: MakeParams) -> None:
    lines = Lines(PREPARED / "demonstrations.jsonl")
    tokens = sorted(look("demonstrations", lines, load_tokenizer(MODELS / "base")).figures["tokens"])
    limit = int(tokens[8])

    rows = plan_of(make_params(validate={"max_tokens": limit}), given)["rows"]["demonstrations"]

    assert {split: counts["rows"] for split, counts in rows["splits"].items()} == {
        "train": 10,
        "validation": 4,
        "test": 4,
    }
    assert sum(counts["kept"] for counts in rows["splits"].values()) == sum(each <= limit for each in tokens) < 18
    for share, of_share in rows["limit_that_keeps"].items():
        assert sum(each <= of_share for each in tokens) >= float(share) * 18
        assert sum(each < of_share for each in tokens) < float(share) * 18


def test_many_long_rows_are_named_and_cut_ones_are_kept(
    make_params: MakeParams, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines(PREPARED / "demonstrations.jsonl")
    tokens = sorted(look("demonstrations", lines, load_tokenizer(MODELS / "base")).figures["tokens"])
    limit = int(tokens[13])
    lost = sum(each > limit for each in tokens)
    sentence = f"{lost} of 18 demonstrations are longer than {limit} tokens and go to quarantine"

    dropping = plan_of(make_params(validate={"max_tokens": limit}), given)
    cutting = plan_of(make_params(validate={"max_tokens": limit, "truncate": "answer_end"}), given)

    assert lost > 0.1 * 18
    assert f"{sentence}: raise validate.max_tokens, or cut them (validate.truncate)" in dropping["warnings"]
    assert not [each for each in cutting["warnings"] if "demonstrations" in each]
    rows, cut_rows = (found["rows"]["demonstrations"] for found in (dropping, cutting))
    assert sum(split["kept"] for split in rows["splits"].values()) == 18 - lost
    assert sum(split["kept"] for split in cut_rows["splits"].values()) == 18
    assert (rows["truncated"], cut_rows["truncated"]) == (0, lost)
    assert rows["limit_that_keeps"] == cut_rows["limit_that_keeps"]
    show_plan(cutting)
    assert f"Of demonstrations, {lost} rows are truncated to the limit" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("method", ["dpo", "kto", "ppo"])
def test_steps_tokens_and_times_follow_from_the_settings(make_params: MakeParams, method: str) -> None:
    params = make_params(
        align={"method": method},
        sft={"epochs": 3, "batch_size": 4},
        reward={"epochs": 2, "batch_size": 5, "ensemble": 3},
        ppo={"iterations": 5, "rollouts": 8, "epochs": 2, "num_minibatches": 2, "max_new_tokens": 6},
        evaluate={"prompts": 3, "max_new_tokens": 6},
    )

    stages = {each["stage"]: each for each in plan_of(params, given)["stages"]}

    assert list(stages) == ["sft", "reward", "held_out_reward", method, "evaluate"]
    tokens = look("demonstrations", Lines(PREPARED / "demonstrations.jsonl"), load_tokenizer(MODELS / "base"))
    assert stages["sft"]["steps"] == 9
    assert stages["sft"]["tokens"] == 3 * sum(tokens.figures["tokens"][:10])
    assert stages["sft"]["seconds"] == pytest.approx(stages["sft"]["tokens"] / 100, abs=0.05)
    assert (stages["reward"]["rows"], stages["reward"]["steps"]) == (10, 2 * 2 * 3)
    assert stages["held_out_reward"]["rows"] == 4
    assert stages["evaluate"]["sampled"] == 3 * 3 * 6
    assert stages["evaluate"]["seconds"] == pytest.approx(54 / 50, abs=0.05)
    if method == "ppo":
        assert (stages["ppo"]["rows"], stages["ppo"]["steps"], stages["ppo"]["sampled"]) == (40, 20, 240)


def test_what_the_gate_can_tell(make_params: MakeParams) -> None:
    params = make_params(evaluate={"confidence": 0.95, "prompts": None}, gate={"min_reward_accuracy": 0.55})

    many, few = gate_power(params, 400, 400), gate_power(params, 3, 3)

    # By hand: the bound of Wilson's interval is above 0.5 where 2 wins - n > z sqrt(n), so from 220 of 400.
    assert many["win_rate"] == 220 / 400
    assert many["found"] == pytest.approx(0.5 + 2.8 * 0.5 / 20, abs=0.002)
    assert 0.58 < many["accuracy"] < 0.61
    assert gate_warnings(many) == []
    assert few["found"] is None
    assert [sentence.split(" can ")[0] for sentence in gate_warnings(few)] == ["3 test prompts", "3 held-out pairs"]
    assert gate_power(params, 0, 0)["win_rate"] is None


def test_no_reward_model_is_planned_where_none_is_trained(make_params: MakeParams) -> None:
    function = {"name": "short", "source": "infra/example/rules.py:short", "weight": 1.0}

    found = plan_of(make_params(rewards={"training": [function]}), given)

    assert [each["stage"] for each in found["stages"]] == ["sft", "ppo", "evaluate"]
    assert found["gate"]["pairs"] is None
    assert len(found["warnings"]) == 1  # of the prompts


def test_speed_is_measured_with_the_base_model_and_shown(params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan_of(params, measure_speed)

    assert found["measured"]["trained_a_second"] > 0
    assert found["measured"]["sampled_a_second"] > 0
    show_plan(found)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"from {found['measured']['how']}" in shown
    assert "Warning: 4 test prompts can hardly show" in shown
