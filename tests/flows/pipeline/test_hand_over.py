"""When the pipeline asks the GPU pool; tests/services/test_work_pools.py has two workers do it."""

from typing import Any

import pytest

from flows.pipeline import hand_over as module
from flows.pipeline.hand_over import with_gpu_part
from flows.stages.reproduce import StageRun


class Walk:
    """Stands in for the walk: which stages are stale, and which of them the remote has."""

    def __init__(self, stale: set[str], there: set[str]) -> None:
        self.stale, self.there = stale, there

    def is_stale(self, stage: str) -> bool:
        return stage in self.stale

    def fetch(self, stage: str) -> bool:
        return stage in self.there


@pytest.mark.parametrize(
    ("stale", "there", "expected"),
    [
        (set(), set(), []),
        ({"sft", "align"}, {"sft", "align"}, []),  # another run has made them
        ({"prepare", "gate"}, set(), []),
        ({"sft", "reward", "align"}, {"sft"}, ["push", "gpu/scheduled"]),  # once
    ],
)
def test_the_gpu_pool_is_asked_once_and_only_for_what_nobody_has_made(
    monkeypatch: pytest.MonkeyPatch, stale: set[str], there: set[str], expected: list[str]
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(module, "push", lambda: calls.append("push"))
    monkeypatch.setattr(module, "_run_there", lambda name, *_given: calls.append(name))
    run = with_gpu_part(lambda _walk, stage: StageRun(stage, "reused", 0.0, ""), "gpu/scheduled", (), None)
    walk: Any = Walk(stale, there)

    runs = [run(walk, stage).stage for stage in ("prepare", "sft", "reward", "align", "gate")]

    assert runs == ["prepare", "sft", "reward", "align", "gate"]
    assert calls == expected
