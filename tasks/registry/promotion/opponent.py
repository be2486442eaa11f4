"""Naming the champion in opponent.json, for evaluate and gate to compare the candidate with."""

from tasks.common.files import read_json, write_json
from tasks.registry.dvc_outputs.stages import changed_stages, output_hash, plan
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion.candidate import OPPONENT_FILE, SFT_OPPONENT, aligned_folder
from tasks.registry.promotion.decisions import Holder, one_at_a_time
from tasks.registry.promotion.versions import CHAMPION, holder, settle
from tasks.settings.params import Params


def refresh_opponent(params: Params) -> bool:
    """Write the registry's champion into opponent.json before a run; SFT where there is no champion.

    The file is left alone where the run's candidate would be the champion itself, so that nothing runs after a
    promotion.

    Returns:
        Whether the file has changed.

    Raises:
        InputError: MLflow is away, or the record is behind the registry.
    """
    with one_at_a_time():
        store = open_store(params.registry.experiment)
        settle(store, params)
        champion = holder(store, params, CHAMPION)
    wanted = SFT_OPPONENT
    if champion:
        wanted = {"name": "champion", "version": champion["version"], "policy": champion["md5"]}
    if (OPPONENT_FILE.exists() and read_json(OPPONENT_FILE) == wanted) or (champion and _is_candidate(champion)):
        return False
    write_json(OPPONENT_FILE, wanted)
    return True


def _is_candidate(champion: Holder) -> bool:
    folder = aligned_folder()
    if folder is None or output_hash("align", folder) != champion["md5"]:
        return False
    stages = plan()
    return not changed_stages(stages[: stages.index("align") + 1])
