"""An event, and the message that people read of it: the verdict, three figures, and a link."""

import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from flows.stages.last_run import LastRun
from tasks.common.files import STATE
from tasks.common.rounding import number
from tasks.common.safe_text import sentence, without_secrets
from tasks.registry.mlflow_runs.store import tracking_uri
from tasks.registry.promotion.decisions import MOVES, Decision, registered_model
from tasks.settings.choices import EventKind

FIGURES = 3
# Of the gate's checks, those that tell most of a candidate; ground-truth rewards come after the held-out one.
TELLING = ("win_rate", "held_out_reward", "ground_truth", "kl")
ACTIONS: dict[str, EventKind] = {
    "promote": "promoted",
    "refuse": "refused",
    "hold": "held",
    "rollback": "rolled_back",
}
REPORT = STATE / "report.html"


class Event(NamedTuple):
    """Something that happened."""

    kind: EventKind
    verdict: str  # in one sentence
    figures: list[str]  # at most three lines
    link: str  # where more is known

    @property
    def title(self) -> str:
        """The first line of a message."""
        return sentence(f"Trueline {self.kind.replace('_', ' ')}: {place()}")

    @property
    def body(self) -> str:
        """The other lines of a message."""
        lines = [self.verdict, *(f"- {figure}" for figure in self.figures), self.link]
        return "\n".join(sentence(line) for line in lines)


def place() -> str:
    """Name the checkout and its machine."""
    return f"{Path.cwd().name} on {socket.gethostname()}"


def of_decision(decision: Decision) -> Event:
    """Describe a decision on a version."""
    kind, policy, previous = ACTIONS[decision["action"]], decision["policy"], decision["previous"]
    name, version = registered_model(policy), policy["version"]
    champion = f"version {previous['version']}" if previous else "none"
    who = f" by {decision['review']['by']}" if decision["review"] else ""
    verdict = {
        "promoted": f"Version {version} of {name} was promoted{who}; champion before: {champion}.",
        "refused": f"Version {version} of {name} was refused{who}; champion: {champion}.",
        "held": f"Version {version} of {name} awaits approval; champion: {champion}.",
        "rolled_back": f"Version {version} of {name} is champion again, in place of {champion}.",
    }[kind]
    reason = decision["reasons"][:1] if kind == "rolled_back" or who else []
    figures = gate_figures(decision["gate"])[: FIGURES - len(reason)]
    return Event(kind, verdict, [*(f"reason: {each}" for each in reason), *figures], link(name, version))


def gate_figures(gate: Mapping[str, Any]) -> list[str]:
    """Give the checks of a gate that tell most, those that did not pass first.

    A gate of an earlier release may lack some of what is shown.
    """
    checks = [check for check in gate.get("checks", []) if check.get("figure") is not None]
    ranked = sorted(checks, key=lambda check: (check.get("verdict") == "passed", _place(check["name"])))
    return [_figure(check) for check in ranked[:FIGURES]]


def _figure(check: Mapping[str, Any]) -> str:
    threshold = f", threshold {check['threshold']:g}" if "threshold" in check else ""
    verdict = f": {check['verdict']}" if "verdict" in check else ""
    return f"{check['name']} {number(check['figure'])}{threshold}{verdict}"


def of_failure(run: LastRun, champion: str) -> Event:
    """Describe a run that failed or crashed."""
    stage = f" in {run.failed_stage}" if run.failed_stage else ""
    how = "crashed" if run.outcome == "crashed" else f"failed{stage}"
    figures = [f"started: {run.started}", f"stages that ended: {len(run.stages)}", f"champion: {champion}"]
    return Event("failed", f"The run {how}: {run.message}", figures, link())


def of_recovery(run: LastRun, trouble: str, champion: str) -> Event:
    """Describe the first success after trouble, such as "failed since" its time."""
    seconds = sum(stage["seconds"] for stage in run.stages.values())
    figures = [f"verdict: {run.verdict}", f"stages took: {_span(seconds)}", f"champion: {champion}"]
    return Event("recovered", f"A run succeeded again; before: {trouble}.", figures, link())


def of_standstill(stage: str, seconds: float, progress: str, pid: int, started: str) -> Event:
    """Describe a run without progress."""
    verdict = f"The run stands still: {stage} has made no progress for {_span(seconds)}."
    return Event("stuck", verdict, [f"progress: {progress}", f"run started: {started}", f"process: {pid}"], link())


def champion_of(decisions: Sequence[Decision]) -> str:
    """Name the champion that a policy's decisions leave."""
    moves = [decision for decision in decisions if decision["action"] in MOVES]
    return f"version {moves[-1]['policy']['version']}" if moves else "none"


def link(model: str | None = None, version: int | None = None) -> str:
    """Give the page of the flow's run on a Prefect server, of a version on an MLflow server, or the report's file."""
    if page := _flow_page():
        return page
    uri = tracking_uri()
    if model and version and uri.startswith("http"):
        return f"{without_secrets(uri).rstrip('/')}/#/models/{model}/versions/{version}"
    return f"{REPORT.resolve()} on {socket.gethostname()}" if REPORT.exists() else f"trueline status on {place()}"


def _flow_page() -> str | None:
    """Give the page of the flow's run, where a deployment started it: its server outlasts it."""
    if "prefect" not in sys.modules:  # nor does this process run one
        return None
    from prefect.runtime import deployment, flow_run

    return without_secrets(flow_run.ui_url) if deployment.id and flow_run.ui_url else None


def _place(name: str) -> int:
    group = name.partition(".")[0]
    return TELLING.index(group) if group in TELLING else len(TELLING)


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
