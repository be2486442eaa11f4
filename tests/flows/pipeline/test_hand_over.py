"""When the pipeline asks the GPU pool; tests/services/test_work_pools.py has two workers do it."""

from typing import Any, cast

import pytest

from flows.pipeline import hand_over as module
from flows.pipeline.hand_over import with_gpu_part
from flows.stages.reproduce import StageRun
from tasks.common.errors import InputError


class Walk:
    """Stands in for the walk: which stages are stale."""

    def __init__(self, stale: set[str]) -> None:
        self.stale = stale

    def is_stale(self, stage: str) -> bool:
        return stage in self.stale


class Pools:
    """Both pools: which results there are, and what the one with GPUs adds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, known: set[str], made: set[str]) -> None:
        self.known, self.made, self.calls = known, made, list[str]()
        monkeypatch.setattr(module, "push", lambda: self.calls.append("push"))
        monkeypatch.setattr(module, "_run_there", self.run_there)
        monkeypatch.setattr(module, "is_known", lambda stage: stage in self.known)
        self.run = with_gpu_part(lambda _walk, stage: StageRun(stage, "reused", 0.0, ""), "gpu/scheduled", (), None)

    def run_there(self, name: str, *_given: object) -> None:
        self.calls.append(name)
        self.known |= self.made


@pytest.mark.parametrize(
    ("stale", "known", "expected"),
    [
        (set(), set(), []),
        ({"sft", "align"}, {"sft", "align"}, []),  # another run has made them
        ({"prepare", "gate"}, set(), []),
        ({"sft", "reward", "align"}, {"sft"}, ["push", "gpu/scheduled"]),  # once
    ],
)
def test_the_gpu_pool_is_asked_once_and_only_for_what_nobody_has_made(
    monkeypatch: pytest.MonkeyPatch, stale: set[str], known: set[str], expected: list[str]
) -> None:
    pools, walk = Pools(monkeypatch, known, stale), cast("Any", Walk(stale))

    runs = [pools.run(walk, stage).stage for stage in ("prepare", "sft", "reward", "align", "gate")]

    assert runs == ["prepare", "sft", "reward", "align", "gate"]
    assert pools.calls == expected


def test_what_the_gpu_pool_made_of_other_code_is_not_trained_again_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pools, walk = Pools(monkeypatch, set(), {"sft"}), cast("Any", Walk({"sft", "align"}))
    pools.run(walk, "sft")
    with pytest.raises(InputError, match=r"gpu/scheduled made no align from the code, data and settings"):
        pools.run(walk, "align")
    assert pools.calls == ["push", "gpu/scheduled"]
