"""Sources that DVC imported from elsewhere: here a folder outside the checkout stands for the other place."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.events import snapshots, watch
from flows.events.imports import fetch, pointer_of, remote_signature
from flows.events.starting import Outcome
from flows.events.watch import Finding, Watch
from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.graph import GraphStatus


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside a checkout that imported it as `rows`."""
    place, checkout = tmp_path / "elsewhere", tmp_path / "checkout"
    place.mkdir()
    checkout.mkdir()
    (place / "a.jsonl").write_text("a\n")
    monkeypatch.chdir(checkout)
    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init", "-q")
    dvc("import-url", str(place), "rows")
    return place


@pytest.mark.slow
def test_what_changes_elsewhere_is_fetched_and_starts_a_run(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "load_params", lambda: None)
    monkeypatch.setattr(watch, "sources", lambda _params: {"prepare.preferences.source": "rows"})
    monkeypatch.setattr(watch, "graph_status", lambda: GraphStatus({}, {}))
    clock, runs = [snapshots.now() + 100], list[int]()
    monkeypatch.setattr(snapshots, "now", lambda: clock[0])

    def start(number: int) -> Outcome:
        runs.append(number)
        return "succeeded"

    def resolve() -> list[Finding]:
        found: list[Finding] = []
        while not found or found[-1] == "changing":
            found.append(watching.step().finding)
            clock[0] += 60
        return found

    watching = Watch(start, 60)
    assert resolve()[-1] == "unchanged"
    (elsewhere / "b.jsonl").write_text("b\n")
    assert resolve() == ["changing", "changing", "ran"]  # quiet there, then here
    assert Path("rows/b.jsonl").read_text() == "b\n"
    (elsewhere / "b.jsonl").write_text("b\n")  # equal content
    assert resolve() == ["changing", "unchanged"]
    assert runs == [1]

    pointer = pointer_of(Path("rows"))
    assert pointer == Path("rows.dvc")
    elsewhere.rename(elsewhere.with_name("away"))
    with pytest.raises(InputError, match=r"rows\.dvc: its source cannot be asked"):
        remote_signature(pointer)
    with pytest.raises(InputError, match=r"rows\.dvc: dvc update failed \(.*: it is tried again"):
        fetch(pointer)


def test_what_was_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl.dvc").write_text("outs:\n- md5: abc\n  path: rows.jsonl\n")
    Path("repo.jsonl.dvc").write_text("deps:\n- path: x\n  repo: {url: elsewhere}\nouts:\n- path: repo.jsonl\n")

    assert [pointer_of(Path(name)) for name in ("rows.jsonl", "repo.jsonl", "none.jsonl")] == [None] * 3
