"""A process of DVC's for each stage that is stale, and for no other."""

import shutil
from pathlib import Path

import pytest

from flows.stages import reproduce
from flows.stages import walk as module
from flows.stages.walk import Walk
from tasks.common.children import child
from tasks.registry.dvc_outputs import graph
from tasks.registry.dvc_outputs.graph import graph_status, plan
from tasks.registry.dvc_outputs.stages import repository as opened
from tests.flows.conftest import PIPELINE, dvc

pytestmark = pytest.mark.slow


@pytest.fixture
def started(repository: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages for which a process of DVC's was started since; the pipeline is up to date."""
    monkeypatch.setattr(module, "headline_figure", lambda stage: f"figure of {stage}")
    dvc("repro")
    started: list[str] = []

    def counted(command, **options):
        started.append(command[-1])
        return child(command, **options)

    monkeypatch.setattr(reproduce, "child", counted)
    return started


def walk() -> list[str]:
    walk = Walk(graph_status())
    return [walk.bring_up_to_date(stage).outcome for stage in walk.plan]


def test_where_all_is_up_to_date_nothing_is_started(started: list[str]) -> None:
    assert walk() == ["reused", "reused"]
    assert started == []


def test_a_stage_that_turns_stale_on_the_way_is_found(started: list[str]) -> None:
    Path("raw.txt").write_text("other\n")
    assert graph_status().stale == ["one"]
    assert walk() == ["ran", "ran"]
    assert started == ["one", "two"]
    assert Path("two.txt").read_text() == "other\nother\n"


def test_a_stage_whose_input_came_out_the_same_is_not_started(started: list[str]) -> None:
    Path("dvc.yaml").write_text(PIPELINE.replace("cp raw.txt", "cp  raw.txt"))
    assert walk() == ["ran", "reused"]
    assert started == ["one"]


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("spoilt\n")])
def test_an_output_that_is_missing_or_changed_is_restored(started: list[str], spoil) -> None:
    spoil(Path("one.txt"))
    assert walk() == ["reused", "reused"]
    assert started[0] == "one"
    assert Path("one.txt").read_text() == "raw\n"


def test_what_the_cache_lacks_is_made_again(started: list[str]) -> None:
    Path("two.txt").unlink()
    shutil.rmtree(".dvc/cache")
    assert walk() == ["ran", "ran"]  # DVC holds the first for changed, whose output its cache lacks
    assert Path("two.txt").read_text() == "raw\nraw\n"


def test_an_earlier_failure_is_over(started: list[str]) -> None:
    Path(".trueline").mkdir()
    Path(".trueline/failure.json").write_text("{}")
    walk()
    assert not Path(".trueline/failure.json").exists()


def test_a_file_that_was_added_by_hand_is_no_stage(repository: Path) -> None:
    dvc("add", "raw.txt")
    assert plan() == list(graph_status().changes) == ["one", "two"]


def test_the_plan_is_read_again_when_a_file_behind_it_changes(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[None] = []

    def counted(**options):
        looks.append(None)
        return opened(**options)

    monkeypatch.setattr(graph, "repository", counted)
    assert (plan(), plan(), len(looks)) == (["one", "two"], ["one", "two"], 1)
    Path("dvc.yaml").write_text(PIPELINE.replace("two:", "three:"))
    assert plan() == ["one", "three"]
