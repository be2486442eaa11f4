"""Writing the model to compare the candidate with into opponent.json, for evaluate and gate."""

from typing import Any

from tasks.common.files import read_json, write_json
from tasks.registry.dvc_outputs.graph import GraphStatus, graph_status
from tasks.registry.dvc_outputs.stages import output_hash
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion.apply_decisions import apply_pending
from tasks.registry.promotion.candidate import OPPONENT_FILE, SFT_OPPONENT, aligned_folder
from tasks.registry.promotion.decisions import PolicyVersion, checkout_lock
from tasks.registry.promotion.versions import CHAMPION, find_by_alias
from tasks.settings.params import Params


def refresh_opponent(params: Params, graph: GraphStatus | None = None) -> bool:
    """Write the registry's champion into opponent.json before a run; SFT if there is no champion.

    If the run's candidate is the champion itself, it is compared as it was for its promotion: nothing runs afterwards.

    Args:
        params: all settings.
        graph: what DVC says of the stages, where that is known already.

    Returns:
        Whether the file has changed.

    Raises:
        InputError: MLflow cannot be reached, or the decision log is behind the registry.
    """
    with checkout_lock():
        store = open_store(params.registry.experiment)
        apply_pending(store, params)
        champion = find_by_alias(store, params, CHAMPION)
    wanted = opponent_entry(champion["version"], champion["md5"]) if champion else SFT_OPPONENT
    present = read_json(OPPONENT_FILE) if OPPONENT_FILE.exists() else None
    if champion and _has_content(champion):
        graph = graph or graph_status()
        before, after = _around_align(graph)
        if not graph.changed(before):
            compared = champion["record"]["opponent"]
            if present and present != wanted and not graph.changed(after):
                return False
            wanted = opponent_entry(compared["version"], compared["policy"])
    if present == wanted:
        return False
    write_json(OPPONENT_FILE, wanted)
    return True


def opponent_entry(version: int | None, md5: str | None) -> dict[str, Any]:
    """Return what opponent.json says of an earlier champion; of SFT without a version."""
    return {"name": "champion", "version": version, "policy": md5} if version else SFT_OPPONENT


def _has_content(champion: PolicyVersion) -> bool:
    """Return whether dvc.lock has the champion as the aligned policy."""
    folder = aligned_folder()
    return folder is not None and output_hash("align", folder) == champion["md5"]


def _around_align(graph: GraphStatus) -> tuple[list[str], list[str]]:
    """Return the stages up to align, and those after it."""
    stages = list(graph.changes)
    first_after = stages.index("align") + 1
    return stages[:first_after], stages[first_after:]
