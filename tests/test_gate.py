import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.gate import gate
from tasks.settings.params import load_params
from tests.evaluation.test_checks import JUDGE, REWARD
from tests.evaluation.test_report import EVALUATION, VALIDATION, response

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
    write("metrics/evaluate.json", EVALUATION | {"opponent": EVALUATION["opponent"] | {"name": "sft", "version": None}})
    write("metrics/reward.json", REWARD)
    write("metrics/held_out_reward.json", JUDGE)
    write("opponent.json", SFT)
    write("metrics/validate.json", VALIDATION)
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


def test_a_rejection_is_a_result_and_no_error(files, params):
    edit("metrics/evaluate.json", kl={"mean": 1e6, "standard_error": 1.0})
    gate(params)
    assert decided()["decision"] == "reject"
    assert decided()["reasons"] == [
        "The policy is 1,000,000.000 nats an answer away from SFT: more than the 30 allowed."
    ]
    assert "✘ Reject" in REPORT.read_text(encoding="utf-8")


def test_a_missing_figure_is_rejected(files, params):
    edit("metrics/evaluate.json", win_rate={})
    gate(params)
    assert decided()["decision"] == "reject"
    assert decided()["checks"][0]["figure"] is None


def test_a_figure_that_is_not_a_number_is_rejected(files, params):
    edit("metrics/evaluate.json", kl={"mean": float("nan")})
    gate(params)
    assert decided()["decision"] == "reject"


def test_doubt_is_inconclusive(files, params):
    versus = EVALUATION["win_rate"]["vs_opponent"] | {"low": 0.45, "verdict": "inconclusive"}
    edit("metrics/evaluate.json", win_rate={"vs_opponent": versus})
    gate(params)
    assert decided()["decision"] == "inconclusive"


def test_dvc_gets_the_points_of_its_plots(files, params):
    edit("metrics/reward.json", accuracy_by_confidence={"0.5-0.6": {"value": 0.5, "pairs": 4}, "0.6-0.7": {}})
    marks = [{"step": 40, "kl": {"mean": 1.5}, "win_rate": {"reward": {"value": 0.6}, "held_out": {"value": 0.55}}}]
    edit("metrics/evaluate.json", frontier=marks)
    gate(params)
    assert REPORT.with_name("reliability.csv").read_text() == "confidence,accuracy,pairs\n0.55,0.5,4.0\n"
    assert REPORT.with_name("frontier.csv").read_text() == "step,kl,reward,held_out,ground_truth\n40.0,1.5,0.6,0.55,\n"


def test_reruns_give_the_same_bytes(files, params):
    gate(params)
    before = {path.name: path.read_bytes() for path in (GATE, *REPORT.parent.iterdir())}
    gate(params)
    assert {path.name: path.read_bytes() for path in (GATE, *REPORT.parent.iterdir())} == before
    assert set(before) == {"gate.json", "report.html", "reliability.csv", "frontier.csv"}


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
