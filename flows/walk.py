"""The walk along DVC's plan: a process of DVC's for a stage that is stale, and none for one that is up to date."""

from typing import NamedTuple

from flows.figures import telling_figure
from flows.locks import one_flow_at_a_time
from flows.preflight import preflight
from flows.reproduce import StageRun, reproduce
from tasks.registry.dvc_outputs.graph import GraphStatus, graph_status
from tasks.registry.lineage import sync
from tasks.registry.lineage.report import write_report
from tasks.registry.promotion import champion
from tasks.registry.promotion.opponent import refresh_opponent
from tasks.stage import FAILURE_NOTE


class Result(NamedTuple):
    """What came of a flow."""

    stages: list[StageRun]
    registered: champion.Registered
    verdict: champion.Promotion
    alarms: list[str]  # stages that gave other bytes than before on the same input


class Walk:
    """The stages of the plan in order, each brought up to date."""

    def __init__(self, graph: GraphStatus) -> None:
        """Begin with what DVC says of the stages now; what failed before is over."""
        FAILURE_NOTE.unlink(missing_ok=True)
        self.plan = list(graph.changes)
        self._stale = set(graph.stale)
        self._has_written = False  # since DVC was last asked

    def bring_up_to_date(self, stage: str) -> StageRun:
        """Run a stage, or restore its outputs, where it is stale.

        Raises:
            InputError: the stage says that its input must be mended.
            StageError: it failed for another reason.
        """
        if stage not in self._stale and self._has_written:
            self._stale, self._has_written = set(graph_status().stale), False
        if stage not in self._stale:
            return StageRun(stage, "reused", 0.0, telling_figure(stage))
        self._has_written = True
        return reproduce(stage)


def finish_unchanged() -> Result | None:
    """Do all that the flow does where no stage is stale, without Prefect; None where one is.

    Raises:
        InputError: something must be mended, or another flow runs in this checkout.
    """
    with one_flow_at_a_time():
        params, graph = preflight()
        if refresh_opponent(params, graph):
            graph = graph_status()
        if graph.stale:
            return None
        walk = Walk(graph)
        stages = [walk.bring_up_to_date(stage) for stage in walk.plan]
        synced = sync.sync(params)
        registered = champion.register(params)
        write_report(params)
        return Result(stages, registered, champion.promote(params), synced["alarms"])
