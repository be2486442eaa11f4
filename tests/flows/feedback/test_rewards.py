"""A rule in a user's file, end to end: what PPO learns from, and a figure of its own in evaluation, gate and report."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kill_campaign import Checkout

RULES = """
def brief(answers):
    return [-0.05 * len(each.split()) for each in answers]

def known(answers, references):
    return [float(any(word in " ".join(some) for word in each.split())) for each, some in zip(answers, references)]
"""
SETTINGS = {
    "rewards": {
        "code": "mine",
        "training": [{"name": "brief", "source": "mine/rules.py:brief", "weight": 1.0}],
        "ground_truth": [
            {"name": "short_answers", "source": "mine/rules.py:brief"},
            {"name": "known_words", "source": "mine/rules.py:known"},
        ],
    },
    "sft": {"epochs": 6},
    "ppo": {
        "iterations": 8,
        "kl_coefficient": 0.0,
        "missing_eos_penalty": 0.0,
        "learning_rate": 1e-3,
        "critic_learning_rate": 1e-3,
        "evaluation_points": 1,
        "evaluation_prompts": 32,
    },
    "evaluate": {"prompts": 128, "best_of": 1},
}


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_rule_of_a_users_file_raises_the_score_and_is_reported_under_its_name(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/rules.py").write_text(RULES, encoding="utf-8")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    checkout.run("trueline", "configure", "rules.yaml")
    checkout.run("trueline", "run")

    with (tmp_path / "curves/ppo.csv").open(encoding="utf-8") as file:
        scores = [float(row["reward/brief"]) for row in csv.DictReader(file)]
    assert min(scores[-2:]) > max(scores[:2])
    for name in ("reward", "held_out_reward"):
        assert read(tmp_path / f"metrics/{name}.json") == {"trained": False}
        assert [path.name for path in (tmp_path / "models" / name).iterdir()] == ["NOTE.txt"]
    evaluation = read(tmp_path / "metrics/evaluate.json")
    assert set(evaluation["training"]) == {"brief"}
    assert set(evaluation["ground_truth"]) == {"short_answers", "known_words"}
    assert evaluation["held_out"] is None
    gate = read(tmp_path / "metrics/gate.json")
    report = (tmp_path / "reports/gate/report.html").read_text(encoding="utf-8")
    for name in ("short_answers", "known_words"):
        assert any(name in json.dumps(check) for check in gate["checks"])
        assert name in report
    assert checkout.ask("status")["untrained"] == ["reward", "held_out_reward"]
