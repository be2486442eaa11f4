"""The reward model's freshness, of the result in dvc.lock: computed once, and saved in MLflow."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.events.freshness import current
from tasks.registry.dvc_outputs.stages import lock_key
from tasks.registry.lineage import freshness as module
from tasks.registry.lineage.freshness import freshness, saved_freshness
from tasks.registry.mlflow_runs.linked_runs import find_run, link_runs
from tasks.registry.mlflow_runs.store import open_store
from tasks.settings.params import load_params
from tests.registry.conftest import repro

pytestmark = pytest.mark.slow


def rows(count: int) -> list[dict[str, Any]]:
    """Answers of the candidate that drifted to one word, and of SFT that are as the pairs are."""
    return [
        {
            "id": f"{number}",
            "prompt": [{"role": "user", "content": f"asked {number}"}],
            "candidate": {"answer": "wonderful wonderful", "reward": number, "held_out": -number},
            "sft": {"answer": f"we refund {number}", "reward": number, "held_out": number},
        }
        for number in range(count)
    ]


def pairs(count: int) -> list[dict[str, Any]]:
    def pair(number: int, split: str) -> dict[str, Any]:
        prompt = [{"role": "user", "content": f"order {number}"}]
        message = {"role": "assistant", "content": f"we send {number}"}
        return {"split": split, "prompt": prompt, "chosen": f"we refund {number}", "rejected": message}

    return [pair(number, "train") for number in range(count)] + [pair(0, "test")]


def test_figures_are_computed_once_and_saved(tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(__file__).parents[2] / "infra", "infra")
    for stage, name, content in (("evaluate", "responses", rows(30)), ("validate", "preferences", pairs(30))):
        Path("given", stage).mkdir(parents=True, exist_ok=True)
        Path("given", stage, f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in content))
    repro("validate", "evaluate", force=True, single_item=True)
    params = load_params()
    store = open_store(params.registry.experiment)
    link_runs(store)
    found = freshness(params)

    assert found is not None
    candidate, sft = (found["drift"][name] for name in ("candidate", "sft"))
    assert candidate is not None
    assert sft is not None
    assert candidate["low"] > 0.95 > sft["value"]
    assert found["agreement"] == {
        "candidate": {"value": 0.0, "low": 0.0, "high": 0.0},  # of both policies' answers
        "sft": {"value": 1.0, "low": 1.0, "high": 1.0},
    }
    run = find_run(store, str(lock_key("evaluate")))
    assert run is not None
    assert run.data.metrics["freshness/agreement.candidate"] == 0
    assert run.data.metrics["freshness/drift.candidate.low"] == candidate["low"]

    monkeypatch.setattr(module, "_measured", None)
    assert freshness(params) == saved_freshness() == found
    known = current(params)
    assert known is not None
    assert len(known["reasons"]) == 2
