"""Whether the reward model still fits what the policy in dvc.lock writes: figures of its evaluation and its pairs.

They follow from files alone, so they are computed once a result and saved with the evaluation's run in MLflow. They are
no output of DVC: nothing is decided by them.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from tasks.common.errors import InputError
from tasks.common.files import REPORTS, STATE, VALIDATED, read_json, read_jsonl, temporary_folder, write_json
from tasks.registry.dvc_outputs.cache import NotCachedError, materialise
from tasks.registry.dvc_outputs.stages import lock_key, output_hash
from tasks.registry.lineage.trace import LINKS
from tasks.registry.mlflow_runs.linked_runs import find_run
from tasks.registry.mlflow_runs.store import open_store
from tasks.settings.params import Params

if TYPE_CHECKING:
    from tasks.evaluation.staleness import Figure

FRESHNESS = STATE / "freshness.json"
EVALUATION = REPORTS / "evaluate"
POLICIES = ("candidate", "sft")
FEWEST = 20  # rows, below which libraries need not be loaded to find that there is no figure


class Interval(TypedDict):
    """A figure with its interval."""

    value: float
    low: float
    high: float


Figures = dict[str, Interval | None]


class Freshness(TypedDict):
    """The figures of a result; None: too few rows, or nothing to compare with."""

    key: str  # of the result
    drift: Figures  # of candidate and SFT, from the reward model's training answers
    agreement: Figures  # of the reward model and the held-out one on SFT's answers, and on the candidate's with them


def freshness(params: Params) -> Freshness | None:
    """Give the figures of the result in dvc.lock; None where it has no reward model, or lies elsewhere.

    A clone that has fetched nothing but what it needs has neither answers nor pairs; MLflow has the figures.

    Raises:
        InputError: the answers or the pairs are damaged, or MLflow cannot be reached.
    """
    key = _key()
    if key is None or not params.rewards.use_model:
        return None
    if (known := saved_freshness()) and known["key"] == key:
        return known
    try:
        drift, agreement = _measured()
    except NotCachedError:
        return None
    found = Freshness(key=key, drift=drift, agreement=agreement)
    _log(params, found)
    write_json(FRESHNESS, found)
    return found


def saved_freshness() -> Freshness | None:
    """Give the figures that were last computed, if they are of the result in dvc.lock."""
    try:
        found = read_json(FRESHNESS)
    except InputError:  # there are none yet
        return None
    is_current = found.keys() == Freshness.__annotations__.keys() and found["key"] == _key()
    return cast("Freshness", found) if is_current else None


def _key() -> str | None:
    keys = [lock_key("evaluate"), output_hash("validate", VALIDATED)]
    return None if None in keys else hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]


def _measured() -> tuple[Figures, Figures]:
    with temporary_folder(STATE / "freshness") as folder:  # on the disk of the cache, so that links work
        places = []
        for stage, path in (("evaluate", EVALUATION), ("validate", VALIDATED)):
            places.append((folder / stage).absolute())
            materialise(str(output_hash(stage, path)), places[-1], LINKS)
        responses = list(_rows(places[0] / "responses.jsonl"))
        pairs = [row for row in _rows(places[1] / "preferences.jsonl") if row["split"] == "train"]
    if len(responses) < FEWEST:
        return dict.fromkeys(POLICIES), dict.fromkeys(POLICIES)
    return _compared(responses, pairs)


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    return read_jsonl(path) if path.exists() else []


def _compared(responses: list[dict[str, Any]], pairs: list[dict[str, Any]]) -> tuple[Figures, Figures]:
    from tasks.evaluation.staleness import Text, agreement, drift

    learned = [Text(json.dumps(row["prompt"]), _text(row[name])) for row in pairs for name in ("chosen", "rejected")]
    prompts = [json.dumps(row["prompt"]) for row in responses]
    drifts, agreements = Figures(), Figures()
    for name in POLICIES:
        answered = [Text(prompt, row[name]["answer"]) for prompt, row in zip(prompts, responses, strict=True)]
        drifts[name] = _rounded(drift(learned, answered))
        # A policy that learned its reward writes answers of nearly one score, whose order says little: SFT's beside
        # them tell whether both models see what was gained.
        rows = [row[each] for each in dict.fromkeys((name, "sft")) for row in responses]
        rewards, held_out = ([row.get(by) for row in rows] for by in ("reward", "held_out"))
        known = None not in rewards and None not in held_out
        asked = prompts * (len(rows) // len(prompts))
        agreements[name] = _rounded(agreement(asked, rewards, held_out)) if known else None
    return drifts, agreements


def _rounded(figure: "Figure | None") -> Interval | None:
    return figure and Interval(**{part: round(value, 6) for part, value in figure._asdict().items()})  # type: ignore[typeddict-item]


def _text(answer: str | Mapping[str, Any]) -> str:
    return answer if isinstance(answer, str) else str(answer["content"])


def _parts(interval: Interval | None) -> list[tuple[str, float]]:
    if interval is None:
        return [("value", math.nan)]
    return [("value", interval["value"]), ("low", interval["low"]), ("high", interval["high"])]


def _log(params: Params, found: Freshness) -> None:
    from mlflow.entities import Metric

    store = open_store(params.registry.experiment)
    run = find_run(store, str(lock_key("evaluate")))
    if run is None:  # sync makes it, before
        return
    now = int(time.time() * 1000)
    metrics = [
        Metric(f"freshness/{figure}.{name}{'' if part == 'value' else f'.{part}'}", value, now, 0)
        for figure, by_policy in (("drift", found["drift"]), ("agreement", found["agreement"]))
        for name, interval in by_policy.items()
        for part, value in _parts(interval)
    ]
    store.client.log_batch(run.info.run_id, metrics=metrics)
