"""Whether the reward model is stale: figures of the result and the age of the pairs, against params.yaml."""

import logging
import subprocess
import time
from pathlib import Path
from typing import Any, TypedDict

from flows.events.messages import Event, link
from flows.events.reporting import report
from tasks.common.errors import InputError
from tasks.common.files import STATE, names_path_in, read_json, write_json
from tasks.common.python_files import is_python
from tasks.common.rounding import number
from tasks.registry.lineage.freshness import Freshness, Interval, freshness, saved_freshness
from tasks.settings.params import NO_ROWS, Params

REPORTED = STATE / "stale.json"  # of which result, and for which reasons
DAY = 86_400
CURE = "New pairs are needed: trueline collect, then label."
logger = logging.getLogger(__name__)


class Staleness(TypedDict):
    """What is known of the reward model's freshness."""

    figures: Freshness | None
    age_days: float | None  # of the newest pairs
    reasons: list[str]  # why it is stale; empty: it is not


def check_freshness(params: Params) -> None:
    """Compute the figures of a new result, and report a stale reward model once a result and reason."""
    try:
        figures = freshness(params)
    except InputError as error:
        logger.warning("it is not known whether the reward model is stale: %s", error)
        return
    if figures is None:
        return
    found = staleness(params, figures)
    known = {"key": figures["key"], "reasons": [reason.partition(" ")[0] for reason in found["reasons"]]}
    if found["reasons"] and known != _reported():
        logger.warning("the reward model is stale: %s", "; ".join(found["reasons"]))
        report(event_of(found))
    write_json(REPORTED, known)


def current(params: Params) -> Staleness | None:
    """Give what is known without computing anything; None where that is nothing."""
    figures = saved_freshness() if params.rewards.use_model else None
    return staleness(params, figures) if figures else None


def staleness(params: Params, figures: Freshness) -> Staleness:
    """Compare the figures and the age of the pairs with the settings."""
    limits, age = params.freshness, age_of_pairs(params)
    drift, agreement = figures["drift"]["candidate"], figures["agreement"]["candidate"]
    reasons = []
    if drift and drift["low"] > limits.max_drift:
        reasons.append(f"drift {_interval(drift)} is over freshness.max_drift {limits.max_drift:g}")
    if agreement and agreement["high"] < limits.min_agreement:
        reasons.append(f"agreement {_interval(agreement)} is below freshness.min_agreement {limits.min_agreement:g}")
    if age is not None and limits.max_age_days is not None and age > limits.max_age_days:
        reasons.append(f"age of the newest pairs, {age:.0f} days, is over freshness.max_age_days {limits.max_age_days}")
    return Staleness(figures=figures, age_days=age, reasons=reasons)


def event_of(found: Staleness) -> Event:
    """Describe a stale reward model."""
    verdict = f"The reward model is stale: {'; '.join(found['reasons'])}. {CURE}"
    return Event("stale", verdict, lines(found), link())


def lines(found: Staleness) -> list[str]:
    """Give drift, agreement and age, each in a line with what to compare it with."""
    figures, age = found["figures"], found["age_days"]
    compared = [
        f"{name} {_interval(figures[name]['candidate'])} (SFT {_interval(figures[name]['sft'])})"
        for name in ("drift", "agreement")
        if figures
    ]
    return [*compared, f"newest pairs {'of unknown age' if age is None else f'{age:.1f} days old'}"]


def age_of_pairs(params: Params) -> float | None:
    """Give the days since the pairs were last added to; None where that is not known.

    That is the date of the last commit of their file or folder, or of DVC's pointer to it, where git has it unchanged
    (a clone gives every file today's time), else the time of the newest file. Of pairs that a Python file makes, it is
    the date of the data which it reads.
    """
    source = params.prepare.preferences
    path = Path(source.source)
    if is_python(source.source):
        path = Path(params.prepare.data)
        if not names_path_in(source.options, path):
            return None
    if path == Path(NO_ROWS):
        return None
    pointer = path.with_name(f"{path.name}.dvc")
    date = _committed(pointer if pointer.exists() else path) or _newest(path)
    return date and (time.time() - date) / DAY


def _newest(path: Path) -> float | None:
    files = [path] if path.is_file() else path.rglob("*")
    return max((file.stat().st_mtime for file in files if file.is_file()), default=None)


def _committed(path: Path) -> float | None:
    """Give the time of the last commit of a file or folder that git has as it is."""
    if _git("status", "--porcelain", "--ignored", "--", str(path)):
        return None
    committed = _git("log", "-1", "--format=%ct", "--", str(path))
    return float(committed) if committed else None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(("git", *arguments), capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git here
        return ""
    return done.stdout.strip()


def _reported() -> dict[str, Any] | None:
    try:
        return read_json(REPORTED)
    except InputError:  # nothing yet
        return None


def _interval(figure: Interval | None) -> str:
    if figure is None:
        return number(None)
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"
