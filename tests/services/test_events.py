"""Events at a real Prefect server, and a source from a real S3 server."""

import subprocess
import sys
import uuid
from pathlib import Path

import httpx
import pytest

from flows.events.imports import fetch, pointer_of, remote_signature
from flows.events.prefect_events import SOURCE_CHANGED, emit_named
from infra.services import s3
from infra.services.services import Services
from tests.conftest import ROOT
from tests.registry.conftest import dvc
from tests.test_children import eventually

SECONDS = 60.0  # for an answer, on a busy machine
ASK = "import sys; from flows.events.starting import ask_server; print(ask_server(sys.argv[1], int(sys.argv[2])))"


@pytest.fixture
def api(up: Services, monkeypatch: pytest.MonkeyPatch) -> str:
    """The Prefect server's address, which the environment names."""
    address = up.environment()["PREFECT_API_URL"]
    monkeypatch.setenv("PREFECT_API_URL", address)
    return address


def test_an_automation_hangs_on_an_event(api: str) -> None:
    name = f"automation {uuid.uuid4().hex}"
    match = {"prefect.resource.id": "trueline.checkout.*"}
    trigger = {"type": "event", "posture": "Reactive", "expect": [SOURCE_CHANGED], "match": match, "threshold": 1}
    automation = {
        "name": name,
        "enabled": True,
        "trigger": trigger | {"within": 0},
        "actions": [{"type": "do-nothing"}],
    }
    httpx.post(f"{api}/automations/", json=automation, timeout=SECONDS).raise_for_status()

    def is_triggered() -> bool:
        emit_named(SOURCE_CHANGED, {"sources": ["prepare.prompts.source"]})  # the server may learn of both in any order
        prefix = {"event": {"prefix": ["prefect.automation.triggered"]}}
        found = httpx.post(f"{api}/events/filter", json={"filter": prefix}, timeout=SECONDS).json()["events"]
        return name in {event["resource"]["prefect.resource.name"] for event in found}

    assert eventually(is_triggered, 60)


def test_the_deployment_is_asked_once_for_a_run(api: str, tmp_path: Path) -> None:
    flow = httpx.post(f"{api}/flows/", json={"name": "trueline"}, timeout=SECONDS).json()["id"]
    deployment = httpx.post(f"{api}/deployments/", json={"name": "scheduled", "flow_id": flow}, timeout=SECONDS).json()[
        "id"
    ]
    wanted = {"deployments": {"id": {"any_": [deployment]}}}

    def runs() -> int:
        return len(httpx.post(f"{api}/flow_runs/filter", json=wanted, timeout=SECONDS).json())

    before = runs()  # another test may have had a deployment of this name
    try:
        for number in (1, 1, 2):
            command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {ASK}", api, str(number)]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.stdout == "asked\n", done.stderr
        assert runs() == before + 2
    finally:
        httpx.delete(f"{api}/deployments/{deployment}", timeout=SECONDS)


def test_a_prefix_of_s3_is_a_source(up: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(up.keys))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{up.ports['s3']}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    storage, bucket = s3.client(up.ports["s3"], up.keys), s3.BUCKETS[0]

    def put(name: str, content: bytes) -> None:
        storage.put_object(Bucket=bucket, Key=f"watched/{name}", Body=content)

    put("a.jsonl", b"a\n")
    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init", "-q", cwd=tmp_path)
    dvc("import-url", "-q", f"s3://{bucket}/watched", "rows", cwd=tmp_path)
    pointer = pointer_of(Path("rows"))
    assert pointer is not None
    before = remote_signature(pointer)
    assert remote_signature(pointer) == before
    for name, content in (("b.jsonl", b"b\n"), ("b.jsonl", b"c\n")):
        put(name, content)
        after = remote_signature(pointer)
        assert after != before
        before = after
        fetch(pointer)
        assert Path("rows", name).read_bytes() == content
