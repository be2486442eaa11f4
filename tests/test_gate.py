import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.gate import gate
from tasks.settings.params import load_params
from tests.evaluation.evaluations import (
    GOOD,
    HELD_OUT_MODEL,
    NO_REWARD_CHECK,
    REWARD_MODEL,
    by_reward,
    changed,
    reward_model,
)
from tests.evaluation.test_report import VALIDATION, response

ROOT = Path(__file__).parents[1]
GATE, REPORT = Path("metrics/gate.json"), Path("reports/gate/report.html")
SFT = {"name": "sft", "version": None, "policy": None}


@pytest.fixture(scope="module")
def params():
    return load_params(ROOT / "params.yaml")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """What the gate reads, as a promotable candidate leaves it."""
    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()
    Path("reports/evaluate").mkdir(parents=True)
    write("metrics/evaluate.json", GOOD)
    write("metrics/reward.json", REWARD_MODEL)
    write("metrics/held_out_reward.json", HELD_OUT_MODEL)
    write("metrics/reward_check.json", NO_REWARD_CHECK)
    write("opponent.json", SFT)
    write("metrics/validate.json", VALIDATION.as_json())
    Path("curves").mkdir()
    for stage in ("sft", "reward", "ppo"):
        Path(f"curves/{stage}.csv").write_text("step,loss,reward,kl\n1,0.7,0.1,0.0\n2,0.5,0.3,1.5\n")
    rows = [response("a", 2.0, 1.0), response("b", 1.0, 2.0)]
    Path("reports/evaluate/responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def write(path, content):
    Path(path).write_text(json.dumps(content))


def edit(path, **changes):
    write(path, json.loads(Path(path).read_text()) | changes)


def decided():
    return json.loads(GATE.read_text())


def test_a_good_candidate_is_promoted(files, params):
    gate(params)
    found = decided()
    assert found["decision"] == "promote"
    assert found["opponent"] == SFT
    names = [
        "win_rate",
        "win_rate_at_equal_length",
        "held_out_reward",
        "over_optimisation",
        "category_regressions",
        "kl",
        "reward_accuracy",
        "held_out_accuracy",
        "length_ratio",
        "eos_rate",
    ]
    names += ["repetition", "refusals", "perplexity"]
    assert [check["name"] for check in found["checks"]] == names
    assert len(found["reasons"]) == 13
    assert "✔ Promote" in REPORT.read_text(encoding="utf-8")


def test_warnings_are_logged_as_they_stand_in_the_report(files, params, caplog):
    gate(params)
    assert not caplog.records
    edit("metrics/evaluate.json", sft_cut_answers={"share": 0.2, "gap": 1.5, "low": 1.25, "high": 1.75})
    gate(params)
    assert [record.message for record in caplog.records] == json.loads(GATE.read_text())["warnings"]
    assert len(caplog.records) == 1


def test_a_rejection_is_a_result_and_no_error(files, params):
    edit("metrics/evaluate.json", kl={"mean": 1e6, "standard_error": 1.0})
    gate(params)
    assert decided()["decision"] == "reject"
    assert decided()["reasons"] == ["KL(policy || SFT), nats per answer 1,000,000.000 <= 30: failed."]
    assert "✘ Reject" in REPORT.read_text(encoding="utf-8")


def test_a_figure_that_could_not_be_computed_is_a_rejection(files, params):
    write("metrics/evaluate.json", changed(GOOD, "win_rate", "vs_opponent", "low", to=None))
    gate(params)
    assert decided()["decision"] == "reject"
    assert decided()["checks"][0]["figure"] is None


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("metrics/evaluate.json", {key: value for key, value in GOOD.items() if key != "kl"} | {"KL": GOOD["kl"]}),
        ("metrics/evaluate.json", changed(GOOD, "kl", "mean", to=float("nan"))),
        ("metrics/reward.json", {"accuracy": 0.9}),
        ("metrics/held_out_reward.json", changed(HELD_OUT_MODEL, "accuracy", "low", to="0.6")),
        ("metrics/validate.json", changed(VALIDATION.as_json(), "preferences", to={"kept": 47})),
    ],
)
def test_a_file_of_another_layout_is_an_error_and_no_rejection(files, params, path, content):
    write(path, content)
    with pytest.raises(InputError, match=rf"{path} has not the layout of this version \(.*: run dvc repro"):
        gate(params)
    assert not GATE.exists()


def test_doubt_is_inconclusive(files, params):
    versus = GOOD["win_rate"]["vs_opponent"] | {"low": 0.45, "conclusion": "inconclusive"}
    write("metrics/evaluate.json", changed(GOOD, "win_rate", "vs_opponent", to=versus))
    gate(params)
    assert decided()["decision"] == "inconclusive"


def test_dvc_gets_the_points_of_its_plots(files, params):
    spans = {"0.5-0.6": {"value": 0.5, "pairs": 4}, "0.6-0.7": {"value": None, "pairs": 0}}
    write("metrics/reward.json", reward_model(accuracy_by_confidence=spans))
    gate(params)
    assert REPORT.with_name("reliability.csv").read_text() == "confidence,accuracy,pairs\n0.55,0.5,4.0\n"
    rows = "0,0.0,0.5,0.5\n40,1.5,0.6,0.6\n80,3.0,0.6,0.6\n"
    assert REPORT.with_name("over_optimisation.csv").read_text() == "step,kl,reward,held_out\n" + rows


def test_the_plot_has_a_column_for_every_ground_truth_reward(files, params):
    content = changed(GOOD, "ground_truth", to={"order_rule": by_reward()})
    for key in ("vs_sft", "vs_opponent"):
        content["difference"][key]["ground_truth"] = {"order_rule": GOOD["difference"][key]["reward"]}
    for point in content["over_optimisation"] + content["best_of_sft"]:
        point["win_rate"] = point["scores"] = point["win_rate"] | {"order_rule": GOOD["difference"]["vs_sft"]["reward"]}
        if point.get("last_over_this"):
            point["last_over_this"] = point["last_over_this"] | {"order_rule": by_reward()["vs_sft"]}
    write("metrics/evaluate.json", content)
    gate(params)
    first, second, *_ = REPORT.with_name("over_optimisation.csv").read_text().splitlines()
    assert (first, second) == ("step,kl,reward,held_out,order_rule", "0,0.0,0.5,0.5,0.0")
    assert "ground_truth.order_rule" in [check["name"] for check in decided()["checks"]]


def test_a_head_that_was_only_fitted_has_no_curve(files, params):
    write("metrics/reward.json", reward_model(steps=0))
    Path("curves/reward.csv").write_text("step,loss\n")
    gate(params)
    assert decided()["decision"] == "promote"


def test_without_reward_models_their_checks_are_left_out_and_named(files, params):
    for path in ("metrics/reward.json", "metrics/held_out_reward.json"):
        write(path, {"trained": False})
    Path("curves/reward.csv").unlink()
    content = changed(GOOD, "held_out", to=None)
    for point in content["over_optimisation"] + content["best_of_sft"]:
        point.update({key: {"reward": point[key]["reward"]} for key in ("scores", "win_rate")})
    write("metrics/evaluate.json", content)
    gate(params)
    names = {check["name"] for check in decided()["checks"]}
    assert not names & {"held_out_reward", "reward_accuracy", "held_out_accuracy", "over_optimisation"}
    assert len(decided()["left_out"]) == 3
    assert decided()["decision"] == "promote"


def test_reruns_give_the_same_bytes(files, params):
    gate(params)
    before = {path.name: path.read_bytes() for path in (GATE, *REPORT.parent.iterdir())}
    gate(params)
    assert {path.name: path.read_bytes() for path in (GATE, *REPORT.parent.iterdir())} == before
    assert set(before) == {"gate.json", "report.html", "reliability.csv", "over_optimisation.csv"}


@pytest.mark.parametrize(
    ("path", "cure"),
    [
        ("metrics/evaluate.json", "run dvc repro|run the stage"),
        ("metrics/reward.json", "run dvc repro|run the stage"),
        ("metrics/validate.json", "run dvc repro|run the stage"),
        ("curves/ppo.csv", "run dvc repro|run the stage"),
        ("reports/evaluate/responses.jsonl", "run dvc repro|run the stage"),
        ("opponent.json", "restore it from git"),
    ],
)
def test_a_missing_or_damaged_file_is_named_with_its_cure(files, params, path, cure):
    Path(path).write_text('{"cut off')
    with pytest.raises(InputError, match=f"{path}.* damaged: .*({cure})"):
        gate(params)
    Path(path).unlink()
    with pytest.raises(InputError, match=f"{path} (does not exist|is missing).*({cure})"):
        gate(params)
    assert not GATE.exists()


@pytest.mark.parametrize("damage", ["[]", "{}", '{"prompt": [{}], "references": [], "candidate": {}, "opponent": {}}'])
def test_a_response_without_answers_is_damaged(files, params, damage):
    path = Path("reports/evaluate/responses.jsonl")
    path.write_text(path.read_text() + damage + "\n")
    with pytest.raises(InputError, match=r"responses.jsonl row 3 is damaged"):
        gate(params)


def test_figures_against_another_opponent_are_refused(files, params):
    write("opponent.json", {"name": "champion", "version": 2, "policy": "ab.dir"})
    with pytest.raises(InputError, match=r"does not compare with champion version 2.*: run dvc repro"):
        gate(params)


def test_the_gate_loads_no_torch():
    code = "import sys, tasks.gate; print({'torch', 'scipy', 'mlflow', 'pandas'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
