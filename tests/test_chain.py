"""The whole chain in miniature, from the built-in example to a decision, by either method; and the same bytes again."""

import hashlib
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from flows.feedback import ai_feedback, rounds
from flows.stages.figures import HEADLINES
from tasks.base import base
from tasks.common.files import read_json, read_jsonl
from tasks.evaluate import evaluate
from tasks.feedback.label import Thresholds
from tasks.gate import gate
from tasks.held_out_reward import held_out_reward
from tasks.methods import STAGES as ALIGNING
from tasks.prepare import prepare
from tasks.reward import reward
from tasks.reward_check import reward_check
from tasks.reward_functions import reward_functions
from tasks.settings.params import load_params
from tasks.sft import sft
from tasks.validate import validate
from tests.conftest import EXAMPLE, OF_PEOPLE, ROOT, rows_from
from tests.settings_read import check_settings_read, recorded

ALIGNERS = {name: getattr(import_module(f"tasks.{name}"), name) for name in ALIGNING}
STAGES = ("prepare", "base", "validate", "sft", "reward", "held_out_reward", "reward_check", "dpo", "evaluate", "gate")


@pytest.fixture
def chain(make_params, noted_run, tmp_path, monkeypatch):
    """Small settings in an empty working folder that holds the example's own files, as the project does."""
    monkeypatch.chdir(tmp_path)
    folder = Path(EXAMPLE).parent
    shutil.copytree(ROOT / folder, folder)
    for name in ("opponent.json", "exclude.txt"):
        shutil.copy(ROOT / name, name)

    def settings(method):
        return make_params(
            prepare={
                **{
                    str(kind): rows_from(kind, EXAMPLE, rows=60, faulty=0.5, label_noise=0.0) for kind in OF_PEOPLE
                },
                "split": {"validation": 0.2, "test": 0.2},
            },
            # Sixty prompts of the example share their wording; a miniature is not about contamination.
            validate={"max_quarantined": 0.5, "min_rows": 4},
            base={"scratch": {"vocabulary": 400, "hidden_size": 16, "layers": 1, "heads": 2, "context": 256}},
            align={"method": method},
            gate={"min_reward_accuracy": 0.0},  # and learns nothing
            reward_check={"on_failure": "warn"},
            ppo={"iterations": 2, "rollouts": 8, "max_new_tokens": 8, "critic_warmup": 0},
            evaluate={"max_new_tokens": 8, "bootstrap": 200},
        )  # fmt: skip

    return settings


def run(params):
    for stage in (
        prepare,
        base,
        validate,
        reward_functions,
        sft,
        reward,
        held_out_reward,
        reward_check,
        ALIGNERS[params.align.stage],
        evaluate,
        gate,
    ):
        with recorded(params) as read:
            stage(params)
        check_settings_read(read, stage.__name__, params.align.stage)


def outputs():
    folders = ("data", "models", "metrics", "curves", "reports")
    paths = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    return {path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.slow
def test_from_raw_data_to_a_decision_and_the_same_bytes_again(chain):
    run(chain("dpo"))
    first = outputs()
    assert {f"metrics/{stage}.json" for stage in STAGES} == {name for name in first if name.startswith("metrics/")}
    assert {name for name in first if name.startswith(("curves/", "reports/"))} == {
        "curves/sft.csv",
        "curves/reward.csv",
        "curves/held_out_reward.csv",
        "curves/dpo.csv",
        "reports/dpo/answers.jsonl",
        "reports/evaluate/evaluation_points.jsonl",
        "reports/evaluate/responses.jsonl",
        "reports/gate/over_optimisation.csv",
        "reports/gate/reliability.csv",
        "reports/gate/report.html",
    }
    assert HEADLINES["dpo"](read_json(Path("metrics/dpo.json"))).startswith("held-out loss ")
    # A miniature learns nothing that lasts: whatever the gate says, it says why.
    decision = read_json(Path("metrics/gate.json"))
    assert decision["decision"] in {"reject", "inconclusive"}
    assert decision["reasons"]
    answers = list(read_jsonl(Path("reports/evaluate/responses.jsonl")))
    assert len(answers) == read_json(Path("metrics/evaluate.json"))["prompts"]

    for folder in ("data", "models", "metrics", "curves", "reports"):
        shutil.rmtree(folder)
    run(chain("dpo"))
    assert outputs() == first


@pytest.mark.slow
def test_the_other_method_takes_the_place_of_dpo(chain):
    run(chain("ppo"))
    evaluation = read_json(Path("metrics/evaluate.json"))
    assert set(evaluation["ground_truth"]["order_rule"]) == {"candidate", "sft", "opponent", "vs_sft", "vs_opponent"}
    assert HEADLINES["ppo"](read_json(Path("metrics/ppo.json"))).startswith("reward ")
    assert Path("models/ppo/model.safetensors").exists()
    assert not Path("models/dpo").exists()


@pytest.mark.slow
def test_a_round_of_iterative_dpo_learns_from_pairs_of_the_policys_own_answers(chain, monkeypatch):
    """All but the registry and DVC is real: answers, labels, rows, checks, training, evaluation and gate."""
    params = chain("dpo")
    # So long that the SFT model ends some of its answers.
    trained = {"sft": params.sft.model_copy(update={"epochs": 30})}
    limits = {"validate_": params.validate_.model_copy(update={"max_tokens": 256})}
    params = params.model_copy(update=trained | limits)
    run(params)
    before = outputs()
    Path("params.yaml").write_text(yaml.safe_dump(params.model_dump(by_alias=True)), encoding="utf-8")
    monkeypatch.setattr(ai_feedback, "recorded_output", lambda stage, _folder: f"md5 of {stage}")
    monkeypatch.setattr(rounds, "open_store", lambda _experiment: None)
    monkeypatch.setattr(rounds, "all_policy_versions", lambda *_: [])

    def flow():
        for stage in (prepare, validate, ALIGNERS["dpo"], evaluate, gate):
            stage(load_params())
        return SimpleNamespace(promotion={"version": 1, "champion": 1, "held": False, "reasons": []})

    asked = rounds.Asked(1, Path("feedback"), "sft", 8, ai_feedback.Named(), Thresholds(0.0, 0.0), "stop")
    done = rounds.run_rounds(asked, flow)

    [row] = done["rounds"]
    assert (done["finished"], row["policy"]["name"], row["annotator"]) == (True, "sft", "reward:reward_model")
    pairs = list(read_jsonl(Path("feedback/round-1/pairs.jsonl")))
    assert len(pairs) == row["pairs"] > 0
    learned = list(read_jsonl(Path("data/ai_preferences/ai_preferences.jsonl")))
    assert {(each["chosen"], each["rejected"], each["annotator"]) for each in learned} <= {
        (pair["chosen"], pair["rejected"], "reward:reward_model") for pair in pairs
    }
    assert learned
    after = outputs()
    changed = {name for name in before if after[name] != before[name]}
    assert "models/dpo/model.safetensors" in changed
    # What does not learn from them is as it was.
    assert not {name for name in changed if name.startswith(("data/validate/", "data/prepare/pref", "models/reward"))}
    first = Path("models/dpo/model.safetensors").read_bytes()
    assert rounds.run_rounds(asked, flow) == done  # nothing is asked again
    assert Path("models/dpo/model.safetensors").read_bytes() == first
