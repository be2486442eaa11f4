"""Writing the champion into opponent.json, for evaluate and gate to compare the candidate with."""

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

    The file stays as it is if the run's candidate would be the champion itself: nothing runs after a promotion.

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
    wanted = SFT_OPPONENT
    if champion:
        wanted = {"name": "champion", "version": champion["version"], "policy": champion["md5"]}
    if (OPPONENT_FILE.exists() and read_json(OPPONENT_FILE) == wanted) or (champion and _is_candidate(champion, graph)):
        return False
    write_json(OPPONENT_FILE, wanted)
    return True


def _is_candidate(champion: PolicyVersion, graph: GraphStatus | None) -> bool:
    folder = aligned_folder()
    if folder is None or output_hash("align", folder) != champion["md5"]:
        return False
    graph = graph or graph_status()
    stages = list(graph.changes)
    return not graph.changed(stages[: stages.index("align") + 1])
