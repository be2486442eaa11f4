from pathlib import Path

import pytest
from prefect import states
from prefect.client.schemas.objects import State

from flows.pipeline import flow as module
from flows.pipeline.flow import is_passing, pipeline
from flows.processes.locks import one_flow_at_a_time
from flows.stages.reproduce import StageError, StageRun
from flows.stages.walk import Walk
from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.graph import GraphStatus
from tasks.stage import Failure, FailureKind


class Plain:
    """Stands in for a Prefect task: calls the function, so that no server is needed."""

    def __init__(self, function, calls: list[str]) -> None:
        self.function, self.calls, self.name = function, calls, "?"

    def with_options(self, name: str) -> "Plain":
        self.calls.append(name)
        return self

    def __call__(self, *arguments):
        return self.function(*arguments)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put doubles in the place of everything but the order of the steps."""
    monkeypatch.chdir(tmp_path)
    calls: list[str] = []

    def step(name: str, result: object = None):
        def called(*_arguments: object) -> object:
            calls.append(name)
            return result

        return called

    verdict = {"promoted": True, "held": False, "version": 1, "champion": 1, "reasons": []}
    graph = GraphStatus({"prepare": [], "sft": []}, {"prepare": set(), "sft": {"prepare"}})
    monkeypatch.setattr("flows.pipeline.steps.take_in_before_run", step("record"))
    monkeypatch.setattr("flows.pipeline.steps.preflight", step("preflight", (None, graph)))
    monkeypatch.setattr(module, "name_opponent", step("opponent", graph))
    monkeypatch.setattr(module, "run_stage", Plain(lambda _walk, stage: StageRun(stage, "ran", 1.0, ""), calls))
    monkeypatch.setattr(module, "sync_lineage", step("lineage", {"stages": [], "alarms": ["sft differs"]}))
    monkeypatch.setattr(module, "register", step("register", {"version": 1}))
    monkeypatch.setattr(module, "check_freshness", step("freshness"))
    monkeypatch.setattr(module, "report", step("report"))
    monkeypatch.setattr(module, "promote", step("promote", verdict))
    monkeypatch.setattr("flows.pipeline.steps.publish_after_run", step("publish", ["not published: no upstream"]))
    return calls


def test_steps_come_in_order(calls: list[str]) -> None:
    result = pipeline.fn()

    last = ["lineage", "register", "freshness", "report", "promote", "publish"]
    assert calls == ["record", "preflight", "opponent", "prepare", "sft", *last]
    assert [row.stage for row in result.stages] == ["prepare", "sft"]
    assert result.promotion["promoted"]
    assert result.alarms == ["sft differs", "not published: no upstream"]


def test_nothing_follows_a_failed_stage(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_walk: Walk, stage: str) -> StageRun:
        raise InputError(f"{stage}: fix it")

    monkeypatch.setattr(module, "run_stage", Plain(fail, calls))
    with pytest.raises(InputError, match="prepare: fix it"):
        pipeline.fn()

    assert calls == ["record", "preflight", "opponent", "prepare"]


def test_a_second_flow_does_nothing(calls: list[str]) -> None:
    with one_flow_at_a_time(), pytest.raises(InputError, match="a flow runs in this checkout already: process"):
        pipeline.fn()

    assert calls == []


@pytest.mark.parametrize(
    ("kind", "again"), [("transient", True), ("input", False), ("bug", False), ("interrupted", False)]
)
def test_only_a_passing_fault_is_tried_again(kind: FailureKind, again: bool) -> None:
    state: State[object] = states.Failed(data=StageError(Failure("sft", kind, "it failed")))

    assert is_passing(None, None, state) is again  # type: ignore[arg-type]


def test_bad_input_is_not_tried_again() -> None:
    assert not is_passing(None, None, states.Failed(data=InputError("fix it")))  # type: ignore[arg-type]
