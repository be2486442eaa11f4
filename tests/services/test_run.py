"""A run under real servers, and clones with its git remote, S3 remote and MLflow: nothing is computed twice."""

import resource
from pathlib import Path

import httpx
import pytest

from infra.services import s3
from infra.services.services import Services
from tests.registry.conftest import shell
from tests.services.conftest import champions, computed, trueline

CPU_SECONDS = 60.0  # for a fresh clone, beside the download


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.timeout(900)
def test_a_run_is_promoted_and_clones_compute_nothing(
    up: Services, checkout: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    trueline("publish")
    for name in ("without its lock", "with a Prefect server of its own, which counts"):
        clone = checkout.with_name(name)
        shell("git", "clone", "-q", str(origin), str(clone), cwd=checkout)
        monkeypatch.chdir(clone)
        if name.startswith("without"):
            Path("dvc.lock").unlink()
        else:
            monkeypatch.delenv("PREFECT_API_URL")
        used = cpu()
        assert "Version 1 is the champion already." in trueline("run")
        assert cpu() - used < CPU_SECONDS
        assert computed() == []
        assert champions() == {"champion": 1}
        assert Path("dvc.lock").read_bytes() == (checkout / "dvc.lock").read_bytes()
        assert shell("git", "status", "--porcelain", "--untracked-files=no", cwd=clone).stdout == ""
