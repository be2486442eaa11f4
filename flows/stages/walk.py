"""The walk along DVC's plan: a process of DVC's for a stage that is stale, and none for one that is up to date."""

from flows.stages.fetching import Fetching
from flows.stages.figures import headline_figure
from flows.stages.reproduce import StageRun, reproduce
from tasks.registry.dvc_outputs.graph import GraphStatus, graph_status
from tasks.stage import FAILURE_FILE


class Walk:
    """The stages of the plan in order, each brought up to date."""

    def __init__(self, graph: GraphStatus, fetching: Fetching | None = None) -> None:
        """Begin with what DVC says of the stages now; what failed before is over.

        Args:
            graph: what DVC says.
            fetching: where results are fetched from; without it all are computed that DVC's cache lacks.
        """
        FAILURE_FILE.unlink(missing_ok=True)
        self.plan = list(graph.changes)
        self.has_worked = False
        self._fetching = fetching
        self.look(graph)

    def look(self, graph: GraphStatus) -> None:
        """Take in what DVC says of the stages now."""
        self._stale = set(graph.stale)
        self._has_written = False  # since DVC was last asked

    def is_stale(self, stage: str) -> bool:
        """Tell whether a stage has to run, or to be fetched; asks DVC again where something has run since."""
        if stage not in self._stale and self._has_written:
            self.look(graph_status())
        return stage in self._stale

    def fetch(self, stage: str) -> bool:
        """Bring a stage's result into DVC's cache; returns whether the remote had it, and the cache did not."""
        return self._fetching is not None and self._fetching.fetch(stage)

    def bring_up_to_date(self, stage: str) -> StageRun:
        """Run a stage, or restore its outputs, where it is stale.

        Raises:
            InputError: the stage says that its input must be fixed, or a remote that is demanded cannot be asked.
            StageError: it failed for another reason.
        """
        if not self.is_stale(stage):
            return StageRun(stage, "reused", 0.0, headline_figure(stage))
        self.has_worked = self._has_written = True
        return reproduce(stage, fetched=self.fetch(stage))
