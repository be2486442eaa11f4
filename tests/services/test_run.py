"""A run under real servers, and a clone that takes its results from S3."""

import json
import subprocess
from pathlib import Path

import httpx

from infra.services import s3
from infra.services.services import Services
from tests.registry.conftest import commit, dvc
from tests.services.conftest import computed, trueline


def test_a_run_is_promoted_and_a_clone_computes_nothing(up: Services, checkout: Path, monkeypatch) -> None:
    before = computed()
    assert "Version 1 is champion now." in trueline("run")
    assert computed() == before
    metrics = trueline("metrics")
    for line in (
        "trueline_champion_version 1.0",
        'trueline_run_last_verdict{verdict="promoted"} 1.0',
        'trueline_queue_runs{state="Late"} 0.0',
        'trueline_metrics_errors{source="registry"} 0.0',
    ):
        assert f"{line}\n" in metrics

    runs = httpx.post(f"{up.environment()['PREFECT_API_URL']}/flow_runs/filter", json={"limit": 200}).json()
    assert "COMPLETED" in {run["state_type"] for run in runs}
    stored = s3.client(up.ports["s3"], up.keys).list_objects_v2(Bucket=s3.BUCKETS[1])
    assert any(found["Key"].endswith("/report.html") for found in stored["Contents"])

    dvc("push", "--run-cache", cwd=checkout)
    commit(checkout, "a champion")
    clone = checkout.with_name("clone")
    subprocess.run(["git", "clone", "-q", str(checkout), str(clone)], check=True)
    monkeypatch.chdir(clone)
    assert "Version 1 is the champion already." in trueline("run")
    assert set(computed()) <= {"evaluate", "gate"}  # whose opponent is the champion by now
    assert json.loads(trueline("why", "champion", "--json"))["version"] == 1
