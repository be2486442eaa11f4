"""The curve of a training: a row per step to MLflow, to a progress bar and, at the end, to a file."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase

from tasks.common.files import CURVES, METRICS, MODELS, write_csv, write_json
from tasks.common.progress import Bar
from tasks.learning import processes
from tasks.learning.models.saving import save_model
from tasks.learning.sharding import full_model
from tasks.learning.training.checkpoints import CurveRow

logger = logging.getLogger(__name__)
MIN_UPDATE_SAVED = 0.9  # see `SavedUpdate.share`; below it a warning says so
NO_STEPS = ("step", "loss")  # the columns of a curve without a step


class Log(Protocol):
    """Where the metrics of steps go besides the curve's file."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""


class Run(Log, Protocol):
    """Where all metrics of a trainer go besides its files; a run in MLflow is one."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Log the final metrics."""

    def model(self, folder: Path) -> None:
        """Log the model that was written."""


class CountedOn:
    """Logs the steps of a training behind those of an earlier one."""

    def __init__(self, log: Log, done: int) -> None:
        """Count on from the steps that are done."""
        self._log, self._done = log, done

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self._log.log(self._done + step, metrics)


class Curve:
    """The metrics of every step so far."""

    def __init__(self, stage: str, steps: int, log: Log, rows: Iterable[CurveRow] = ()) -> None:
        """Begin with the rows of a restored checkpoint, so that the file and the run hold the whole curve."""
        self.rows = list(rows)
        self._log = log
        for row in self.rows:
            self._send(row)
        self._bar = Bar(stage, steps, "step", done=len(self.rows))

    def add(self, step: int, metrics: Mapping[str, float], *shown: str) -> None:
        """Add the row of a step; the metrics called `shown` stand beside the bar."""
        self.rows.append({"step": step, **metrics})
        self._send(self.rows[-1])
        self._bar.set_postfix({name: f"{metrics[name]:.4g}" for name in shown}, refresh=False)
        self._bar.update()

    def write(self, path: Path) -> None:
        """Close the bar and write the rows as CSV; the same rows give the same bytes."""
        self._bar.close()
        write_csv(path, list(self.rows[0]) if self.rows else NO_STEPS, self.rows)

    def extend(self, other: "Curve") -> None:
        """Append the rows of a training that began where this one ended; its steps are counted on, and its bar ends."""
        other._bar.close()
        done = len(self.rows)
        self.rows += [{**row, "step": done + row["step"]} for row in other.rows]

    def _send(self, row: CurveRow) -> None:
        self._log.log(int(row["step"]), {name: value for name, value in row.items() if name != "step"})


def publish(
    stage: str,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    metrics: Mapping[str, Any],
    curve: Curve,
    run: Run,
    others: Sequence[nn.Module] = (),
) -> None:
    """Write models/<stage>, curves/<stage>.csv and metrics/<stage>.json, and log them to the run.

    Only the main process does; the others give it their shards. `others` are the further members of an ensemble. The
    metrics gain what saving cost, where it did.
    """
    full, *full_others = [full_model(each) for each in (model, *others)]
    if not processes.is_main():
        return
    rounding = save_model(full, tokenizer, MODELS / stage, full_others)
    if rounding.update_saved is not None and rounding.update_saved < MIN_UPDATE_SAVED:
        logger.warning(
            "%s: of what was trained %.0f %% is left in the saved weights, for rounding undoes small changes: set "
            "runtime.output_dtype to fp32, or train adapters",
            stage,
            100 * rounding.update_saved,
        )
    metrics = {**metrics, **{name: cost for name, cost in rounding._asdict().items() if cost is not None}}
    curve.write(CURVES / f"{stage}.csv")
    write_json(METRICS / f"{stage}.json", metrics)
    run.summary(metrics)
    run.model(MODELS / stage)
