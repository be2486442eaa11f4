"""Iterative DPO: answers of the current policy, pairs of them, a flow with its gate, and again."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from flows.feedback.ai_feedback import Named, Wanted, collect_answers, label_folder
from flows.settings import configure
from tasks.common.errors import InputError
from tasks.common.files import read_json
from tasks.data.names import name_in_outputs
from tasks.data.sources.feedback import LABELS, MANIFEST, PAIRS
from tasks.feedback.label import Thresholds
from tasks.learning.seeds import seed_for
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion.versions import CHAMPION, all_policy_versions, find_by_alias
from tasks.settings.params import NO_ROWS, Params, load_params

if TYPE_CHECKING:
    from flows.pipeline.steps import Result
    from tasks.registry.promotion.decisions import PolicyVersion

SOURCE = "prepare.ai_preferences.source"
METHOD = "dpo"


class Asked(NamedTuple):
    """What is asked for."""

    rounds: int  # in all, those of earlier commands included
    folder: Path  # of the rounds
    policy: str  # who answers in the first one; the champion of the time does later
    answers: int  # a prompt
    by: Named
    thresholds: Thresholds
    on_reject: Literal["stop", "continue"]


def run_rounds(asked: Asked, run: Callable[[], "Result"]) -> dict[str, Any]:
    """Do the rounds that the folder does not have yet; after a kill the same call continues.

    What is there is not done again: a round has its manifest when it is collected, its labels.json when it is
    labelled, and when its flow has run the next call of `run` has nothing to do.

    Args:
        asked: what is asked for.
        run: runs the flow.

    Returns:
        folder; rounds: of each who answered, what labelled, pairs, version, gate and figures; finished; stopped: why
        there is no further round, or None.

    Raises:
        InputError: the folder or the settings do not fit, or what `collect`, `label answers` and `run` say.
    """
    begun = _begun(asked)
    _check_source(asked.folder, load_params())
    first = max(begun, 1)  # of the last one, nobody knows whether its flow has run
    rows = [_row(asked.folder, number, load_params()) for number in range(1, first)]
    stopped = None
    for number in range(first, asked.rounds + 1):
        _make_pairs(asked, number)
        configure([f"{SOURCE}={asked.folder.as_posix()}", f"align.method={METHOD}"])
        _say(f"round {number} of {asked.rounds}: runs the flow, by {METHOD}")
        promotion = run().promotion
        params = load_params()
        rows.append(_row(asked.folder, number, params, promotion["version"]))
        if promotion["held"]:
            stopped = f"version {promotion['version']} awaits approval: decide, then run the same command again"
        elif promotion["version"] != promotion["champion"] and asked.on_reject == "stop":
            stopped = " ".join([f"version {promotion['version']} was not promoted.", *promotion["reasons"]])
        if stopped:
            break
    finished = len(rows) == asked.rounds
    return {"folder": asked.folder.as_posix(), "rounds": rows, "finished": finished, "stopped": stopped}


def _begun(asked: Asked) -> int:
    """Count the rounds that have been collected."""
    collected = {path.parent.name for path in asked.folder.glob(f"round-*/{MANIFEST}")}
    for number in range(1, len(collected) + 1):
        if _folder(asked.folder, number).name not in collected:
            raise InputError(f"{asked.folder} has {len(collected)} rounds, but no round-{number}: bring it back")
    if len(collected) > asked.rounds:
        raise InputError(f"{asked.folder} has {len(collected)} rounds already: ask for at least as many")
    return len(collected)


def _check_source(folder: Path, params: Params) -> None:
    source = params.prepare.ai_preferences.source
    if source != NO_ROWS and Path(source).resolve() != folder.resolve():
        raise InputError(
            f"{SOURCE} is {source}, which the rounds in {folder} would replace: give --folder {source}, or set it to "
            f"{NO_ROWS}"
        )


def _make_pairs(asked: Asked, number: int) -> None:
    """Collect and label the answers of a round, unless that is done."""
    folder, params = _folder(asked.folder, number), load_params()
    if not (folder / MANIFEST).is_file():
        policy = asked.policy if number == 1 else CHAMPION
        if policy == CHAMPION and find_by_alias(open_store(params.registry.experiment), params, CHAMPION) is None:
            policy = "sft"
        _say(f"round {number} of {asked.rounds}: {policy} answers the training prompts")
        # Another seed, or a policy that stayed champion would answer the same again.
        seed = seed_for(params.seed, "round", number)
        collect_answers(params, folder, Wanted(policy=policy, answers=asked.answers, seed=seed))
    if not (folder / LABELS).is_file():
        _say(f"round {number} of {asked.rounds}: the answers are ordered")
        label_folder(params, folder, asked.by, asked.thresholds)


def _row(rounds: Path, number: int, params: Params, version: int | None = None) -> dict[str, Any]:
    """Tell what a round did, from its folder and the registry.

    Args:
        rounds: their folder.
        number: of the round.
        params: all settings.
        version: that its flow ended with; None: the last that learned from this round and from no later one.
    """
    labels = read_json(_folder(rounds, number) / LABELS)
    known = [
        each
        for each in all_policy_versions(open_store(params.registry.experiment), params)
        if (_last_round(each, rounds) == number if version is None else each["version"] == version)
    ]
    record: dict[str, Any] = known[-1]["record"] if known else {}
    evaluation = record.get("figures", {}).get("evaluate", {})
    ground_truth = evaluation.get("ground_truth") or {}
    difference = evaluation.get("difference", {}).get("vs_sft", {}).get("ground_truth") or {}
    return {
        "round": number,
        "policy": labels["policy"],
        "annotator": labels["annotator"],
        "agreement": labels["agreement"],
        "pairs": labels["counts"]["pairs"],
        "version": known[-1]["version"] if known else None,
        "gate": record.get("gate", {}).get("decision"),
        "win_rate": evaluation.get("win_rate", {}),
        "ground_truth": {
            name: {"sft": scores.get("sft"), "candidate": scores.get("candidate"), "difference": difference.get(name)}
            for name, scores in ground_truth.items()
        },
    }


def _last_round(policy: "PolicyVersion", rounds: Path) -> int | None:
    """Give the last round that a version learned from; None where it learned from none."""
    sources = policy["record"]["data"].get("prepare", {}).get("ai_preferences", {}).get("sources", {})
    numbers = [
        number
        for number in range(1, len(sources) + 1)
        if (_folder(Path(name_in_outputs(rounds.as_posix())), number) / PAIRS).as_posix() in sources
    ]
    return max(numbers, default=None) if policy["record"]["method"] == METHOD else None


def _folder(rounds: Path, number: int) -> Path:
    return rounds / f"round-{number}"


def _say(line: str) -> None:
    sys.stderr.write(f"trueline: {line}\n")
    sys.stderr.flush()
