"""The headline figure of each stage, from its metrics."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from tasks.common.files import METRICS, read_json
from tasks.common.record import parsed
from tasks.common.rounding import number
from tasks.data.checks.validation import VALIDATION, Validation
from tasks.methods import METHODS, STAGES, HeadlineFigure
from tasks.settings.params import load_params

Metrics = Mapping[str, Any]


def headline_figure(stage: str) -> str:
    """Give a stage's telling figure in a few words; empty where the stage has none."""
    name = load_params().align.stage if stage == "align" else stage
    tell, path = HEADLINES.get(name), METRICS / f"{name}.json"
    if tell is None or not path.exists():
        return ""
    return tell(read_json(path))


def _prepare(metrics: Metrics) -> str:
    return f"{sum(kind['records'] for kind in metrics.values()):,} records"


def _base(metrics: Metrics) -> str:
    return f"{metrics['parameters']:,} parameters"


def _validate(metrics: Metrics) -> str:
    files = parsed(metrics, Validation, VALIDATION).by_kind.values()
    cut = sum(each.rows for file in files for each in (file.truncated or {}).values())
    message = f"{sum(file.quarantined for file in files):,} of {sum(file.rows for file in files):,} rows quarantined"
    return message + (f", {cut:,} prompts and answers truncated" if cut else "")


def _sft(metrics: Metrics) -> str:
    held_out = metrics["validation"]
    return f"held-out loss {number(held_out['before']['loss'])} → {number(held_out['after']['loss'])}"


def _reward(metrics: Metrics) -> str:
    if not metrics.get("trained", True):
        return "nothing trained: PPO learns from functions only"
    accuracy = metrics["accuracy"]
    return f"held-out accuracy {_with_interval(accuracy)}"


def _of_method(metrics: Metrics, figures: Iterable[HeadlineFigure]) -> str:
    return ", ".join(
        f"{figure.name} " + " → ".join(_at(metrics, key) for key in (figure.before, figure.key) if key)
        for figure in figures
    )


def _at(metrics: Metrics, key: str) -> str:
    found: Any = metrics
    for part in key.split("."):
        found = found[part]
    return number(found)


def _evaluate(metrics: Metrics) -> str:
    rate = metrics["win_rate"]["vs_sft"]
    if rate["value"] is None:
        return "no win rate"
    ground_truth = (
        f", {name} {number(scores['sft'])} → {number(scores['candidate'])}"
        for name, scores in metrics["ground_truth"].items()
    )
    return f"win rate over SFT {_with_interval(rate)}{''.join(ground_truth)}"


def _with_interval(figure: Metrics) -> str:
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"


def _gate(metrics: Metrics) -> str:
    return str(metrics["decision"])


HEADLINES: dict[str, Callable[[Metrics], str]] = {
    "prepare": _prepare,
    "base": _base,
    "validate": _validate,
    "sft": _sft,
    "reward": _reward,
    "held_out_reward": _reward,
    **{name: partial(_of_method, figures=METHODS[name].headline_figures) for name in STAGES},
    "evaluate": _evaluate,
    "gate": _gate,
}
