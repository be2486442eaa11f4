"""The last checkpoint of a stage, so that a killed run goes on where it was and ends with the same bytes.

It lies outside DVC's outputs, in a folder named by the stage's key: a run with other settings, data or models does not
find it. No random state is stored, since everything random is a pure function of the seed and the step.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tasks.data.files import STATE, hash_files, replacing
from tasks.errors import InputError
from tasks.learning import ranks
from tasks.learning.disk import writing
from tasks.learning.sharding import cut_like, set_to, whole
from tasks.params import Params

CurveRow = dict[str, float]
logger = logging.getLogger(__name__)


class Progress(NamedTuple):
    """How far a stage had come."""

    step: int = 0  # steps done
    rows: Sequence[CurveRow] = ()  # the curve so far
    extra: Mapping[str, float] = {}  # what else the trainer carries from step to step


class Checkpoints:
    """Saving and restoring the weights that learn and their optimisers, by name."""

    def __init__(
        self,
        stage: str,
        key: str,
        every: int,
        models: Mapping[str, nn.Module],
        optimisers: Mapping[str, torch.optim.Optimizer],
    ) -> None:
        """Name what is saved, every so many steps (0: never), under a stage and its key."""
        self._file = STATE / "checkpoints" / stage / key / "last.pt"
        self._every, self._models, self._optimisers = every, models, optimisers
        self._saved: int | None = None

    def restore(self) -> Progress:
        """Bring models and optimisers to where the last checkpoint was; without one, leave them as they are.

        Raises:
            InputError: the checkpoint cannot be read.
        """
        if not self._file.exists():
            others = self._file.parent.parent.glob("*/last.pt")
            for other in sorted(others) if ranks.is_first() else ():
                logger.warning("%s is of other settings, data or models, or of other code: begun anew", other)
            return Progress()
        state = _read(self._file)
        for name, model in self._models.items():
            _load_trainable(model, state["models"][name])
        for name, optimiser in self._optimisers.items():
            _load_optimiser(optimiser, state["optimisers"][name])
        self._saved = state["step"]
        return Progress(state["step"], state["rows"], state["extra"])

    def save(self, progress: Progress, *, final: bool = False) -> None:
        """Save every so many steps, and after the final one, in the place of the last checkpoint."""
        if not self._every or (progress.step % self._every and not final):
            return
        self._saved = progress.step
        state = {
            "step": progress.step,
            "rows": [dict(row) for row in progress.rows],
            "extra": dict(progress.extra),
            "models": {name: _weights(model) for name, model in self._models.items()},
            "optimisers": {name: whole(optimiser.state_dict()) for name, optimiser in self._optimisers.items()},
        }
        if not ranks.is_first():
            return
        with replacing(self._file) as draft, writing(self._file), draft.open("wb") as file:
            torch.save(state, file)
        self._drop_others()

    def finish(self) -> None:
        """Delete the stage's checkpoints: its outputs are written."""
        shutil.rmtree(self._file.parent.parent, ignore_errors=True)

    @property
    def kept(self) -> str:
        """Say which checkpoint is kept, and where."""
        if self._saved is None:
            return "no checkpoint had been saved yet"
        return f"the last good checkpoint, of step {self._saved}, is kept in {self._file}"

    def _drop_others(self) -> None:
        """Keep one checkpoint a stage: drop those of other keys and what killed runs left half written."""
        for found in (*self._file.parent.parent.iterdir(), *self._file.parent.iterdir()):
            if found not in (self._file.parent, self._file):
                shutil.rmtree(found)


def content_key(stage: str, params: Params, inputs: Sequence[Path]) -> str:
    """Key of a stage outside a DVC repository: a hash of its settings and of the files it reads."""
    settings = params.model_dump(include={"seed", "runtime", "lora", stage})
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in inputs:
        key.update(hash_files(path).encode())
    return key.hexdigest()


def _read(file: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        assert isinstance(state, dict)
        return state
    except Exception as error:  # a damaged archive raises whatever its first broken byte leads to
        raise InputError(f"{file} is damaged ({type(error).__name__}): delete it and run again") from error


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in whole(_trainable(model)).items()}


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _load_trainable(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    for name, weight in _trainable(model).items():
        set_to(weight, saved[name])


def _load_optimiser(optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    optimiser.load_state_dict(saved)
    for weight, moments in optimiser.state.items():
        for name, moment in moments.items():
            if moment.shape == weight.shape:  # not the count of steps
                moments[name] = cut_like(moment, weight)
