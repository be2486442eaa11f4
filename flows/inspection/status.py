"""Where the checkout stands: stages, what runs now, champion and challenger, who runs the flow, what failed last."""

from typing import Any, Literal

from flows.events.freshness import current
from flows.processes import locks
from tasks.common.errors import InputError
from tasks.common.progress import running
from tasks.registry.dvc_outputs.graph import graph_status, plan
from tasks.registry.dvc_outputs.stages import lock_entry
from tasks.registry.mlflow_runs.store import main_checkout, open_store, tracking_uri
from tasks.registry.promotion.champion import awaiting
from tasks.registry.promotion.decisions import past_decisions
from tasks.registry.promotion.versions import CHALLENGER, CHAMPION, find_by_alias
from tasks.settings.params import Params
from tasks.stage import last_failure

StageState = Literal["up to date", "changed", "missing", "never ran", "busy"]

REWARD_MODELS = ("reward", "held_out_reward")  # stages


def status(params: Params) -> dict[str, Any]:
    """Gather it as plain data.

    That is: stages, those that train nothing, what runs, registry, the reward model's freshness, the flow's process,
    the last failure.

    Raises:
        InputError: DVC cannot read the pipeline.
    """
    flow, stages, failure = locks.running_flow(), running(), last_failure()
    return {
        # A stage that runs has locked its files against DVC's other commands.
        "untrained": [] if params.rewards.use_model else [*REWARD_MODELS],
        "stages": dict.fromkeys(plan(), "busy") if flow or stages else stage_states(),
        "running": [stage._asdict() for stage in stages],
        "registry": registry(params),
        "freshness": current(params),
        "flow": flow and flow._asdict(),
        "failure": failure and failure._asdict(),
    }


def stage_states() -> dict[str, StageState]:
    """Tell of every stage, in the order of the plan, whether it is up to date."""
    return {stage: _state(stage, changes) for stage, changes in graph_status().changes.items()}


def registry(params: Params) -> dict[str, Any]:
    """Give the versions that are champion, challenger or await approval, or why the registry cannot be asked."""
    versions: dict[str, Any] = {CHAMPION: None, CHALLENGER: None, "awaiting": [], "error": record_fault()}
    if versions["error"]:  # no command acts on a record that is damaged
        return versions
    if tracking_uri().startswith("sqlite:///") and not (main_checkout() / "mlflow.db").exists():
        return versions
    try:
        store = open_store(params.registry.experiment)
        versions_by_alias = {alias: find_by_alias(store, params, alias) for alias in (CHAMPION, CHALLENGER)}
        awaited = awaiting(params, versions_by_alias[CHAMPION])
    except InputError as error:  # all the rest is still worth knowing
        return versions | {"error": str(error)}
    numbers = {alias: found and found["version"] for alias, found in versions_by_alias.items()}
    return versions | numbers | {"awaiting": awaited}


def record_fault() -> str | None:
    """Say what is wrong with decisions.jsonl, and how to repair it; None where nothing is."""
    try:
        past_decisions()
    except InputError as error:
        return str(error)
    return None


def _state(stage: str, changes: list[Any]) -> StageState:
    if not changes:
        return "up to date"
    if lock_entry(stage) is None:
        return "never ran"
    outputs = [kind for change in changes if isinstance(change, dict) for kind in _output_changes(change)]
    only_gone = len(outputs) == len(changes) and set(outputs) == {"deleted"}
    return "missing" if only_gone else "changed"


def _output_changes(change: dict[str, Any]) -> set[str]:
    return set(change.get("changed outs", {}).values())
