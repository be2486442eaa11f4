"""Tracing data to models: which versions were trained on a row, or on rows of a source or annotator?

A model record names its data by hash, so the answer is about the data of that version, not about the working folder. It
is unknown if DVC's cache has lost the data, or if rows name no annotator.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from tasks.common.errors import InputError
from tasks.common.files import STATE, read_jsonl, temporary_folder
from tasks.data.exclusions import SPELLINGS, What, add_exclusion
from tasks.data.names import as_name, stands_for
from tasks.data.records import TAGS, TYPES, Kind
from tasks.methods import METHODS, stages_behind, stages_learning_from
from tasks.registry.dvc_outputs.cache import NotCachedError, materialise
from tasks.registry.dvc_outputs.graph import stages_after
from tasks.registry.export.card import has_reward_model
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion.decisions import MOVES, PolicyVersion, decisions_of
from tasks.registry.promotion.versions import all_policy_versions
from tasks.settings.params import Params

# Which stages are trained on the rows of a kind and split. Other rows are only used for evaluation, with one exception:
# the validation demonstrations set the scale of the scores of both reward models.
TRAINED_ON = {
    ("demonstrations", "train"): ("sft",),
    ("preferences", "train"): (
        "reward",
        *stages_learning_from("preferences"),
    ),
    ("preferences", "validation"): ("held_out_reward",),
    ("ratings", "train"): stages_learning_from("ratings"),
    ("prompts", "train"): stages_learning_from("prompts"),
    ("ai_preferences", "train"): stages_learning_from("ai_preferences"),
}
# The stages that make a model. The held-out reward model makes none: it is only used at the gate.
REWARD_STAGES = ("sft", "reward")
LINKS = ("reflink", "symlink", "hardlink", "copy")  # read-only use, deleted at once
RowCounts = dict[str, dict[str, int]]  # number of rows, by kind and split


class Found(NamedTuple):
    """The rows of a version's data that match a row id, source or annotator."""

    valid: RowCounts
    quarantined: int  # rows that the data checks rejected
    unattributed: RowCounts | None  # valid rows that name no annotator; None unless an annotator is traced


class Traced(TypedDict):
    """The result for a policy version. None means unknown: data are lost, or rows name no annotator."""

    version: int
    reward_version: int
    promoted: bool  # whether it has ever been champion
    method: str
    data: str  # DVC's hash
    policy: bool | None  # whether the policy, or a model it was made from, was trained on it
    reward: bool | None  # whether the reward model was
    stages: list[str]  # that were trained on it
    rows: RowCounts | None  # valid ones; no stage was trained on those outside `stages`
    quarantined: int | None
    unattributed: int | None  # training rows that name no annotator; None unless an annotator is traced


class Trace(TypedDict):
    """The result for every version ever registered, oldest first."""

    what: What
    name: str
    versions: list[Traced]
    in_any: bool  # whether it is in any data that could be read, in quarantine or not


class Excluded(TypedDict):
    """The result of an exclusion."""

    file: str
    added: bool  # False if the file has it already
    stages: list[str]  # that the next run repeats


def trace(params: Params, what: What, name: str) -> Trace:
    """Find the versions, promoted or not, that were trained on a row, source or annotator.

    Args:
        params: all settings.
        what: whether `name` is the id of a row or the name of a source or annotator.
        name: as in data/prepare, or in another spelling; a folder stands for the sources in it.

    Raises:
        InputError: nothing has been registered, a row of data or of the decision log is damaged, or MLflow cannot be
            reached.
    """
    asked, name = name, SPELLINGS[what](name)
    if not name:
        raise InputError(f"{asked!r} names nothing: name one {what}")
    policies = all_policy_versions(open_store(params.registry.experiment), params)
    if not policies:
        raise InputError(f"{params.registry.policy} has no version yet, so none was trained on it: run trueline run")
    decisions = decisions_of(params.registry.policy)
    promoted = {decision["policy"]["md5"] for decision in decisions if decision["action"] in MOVES}
    found = {data: _look(data, what, name) for data in dict.fromkeys(map(_data_of, policies))}
    versions = [_traced(each, each["md5"] in promoted, found[_data_of(each)]) for each in policies]
    in_any = any(each is not None and (each.valid or each.quarantined) for each in found.values())
    return Trace(what=what, name=name, versions=versions, in_any=in_any)


def exclude(params: Params, what: What, name: str) -> Excluded:
    """Exclude a row, source or annotator from the next run on; nothing is run, and raw data stay as they are.

    Raises:
        InputError: the file of exclusions is invalid, or DVC cannot read the pipeline.
    """
    stages = stages_after("prepare")
    added = add_exclusion(Path(params.prepare.exclude), what, name)
    return Excluded(file=params.prepare.exclude, added=added, stages=stages)


def _data_of(policy: PolicyVersion) -> tuple[str, ...]:
    """Give the hashes of a version's data; early versions have no AI pairs."""
    data = policy["record"]["data"]
    return tuple(filter(None, (data["md5"], data.get("ai_preferences"))))


def _look(hashes: tuple[str, ...], what: What, name: str) -> Found | None:
    """Count the matching rows of a version's data; None if DVC's cache lacks some."""
    field = "id" if what == "row" else what
    with temporary_folder(STATE / "traced") as folder:  # on the disk of the cache, so that links work
        places = [(folder / md5).absolute() for md5 in hashes]
        try:
            for md5, place in zip(hashes, places, strict=True):
                materialise(md5, place, LINKS, what=f"data {md5}")
        except NotCachedError:
            return None
        valid = _count(places, TYPES, field, name)
        annotated = [kind for kind in TYPES if TAGS[kind] == what]
        unattributed = _count(places, annotated, field, None) if annotated else None
        quarantines = filter(Path.exists, (place / "quarantine.jsonl" for place in places))
        lines = chain.from_iterable(map(read_jsonl, quarantines))
        return Found(valid, sum(_has(line["record"], field, name) for line in lines), unattributed)


def _count(places: Iterable[Path], kinds: Iterable[Kind], field: str, name: str | None) -> RowCounts:
    """Count the valid rows with a name in a field."""
    files = {place / f"{kind}.jsonl": kind for place in places for kind in kinds}
    counts = {
        kind: Counter(row["split"] for row in read_jsonl(file) if _has(row, field, name))
        for file, kind in files.items()
        if file.exists()  # each is in one of the places, and early data lack some kinds
    }
    return {kind: dict(sorted(splits.items())) for kind, splits in counts.items() if splits}


def _has(row: Mapping[str, Any], field: str, name: str | None) -> bool:
    """Return whether a row has a name in a field; early data lack some fields, and spell names otherwise.

    In a pair with several votes, every vote has an annotator, an id and a source.
    """
    votes = row.get("votes") or ()
    if votes and name is None:
        return False
    if any(_has(vote, field, name) for vote in votes):
        return True
    value = row.get(field)
    if field == "annotator" and value is not None and name is not None:
        return as_name(value) == name
    return value == name or (field == "source" and stands_for(str(name), str(value)))


def _traced(policy: PolicyVersion, promoted: bool, found: Found | None) -> Traced:
    record: dict[str, Any] = policy["record"]
    method = record["method"]
    untrained = set() if has_reward_model(record) else {"reward", "held_out_reward"}
    learned = _trained_stages(found.valid) - untrained if found else set()
    unattributed = found.unattributed if found else None
    return Traced(
        version=policy["version"],
        reward_version=policy["reward_version"],
        promoted=promoted,
        method=method,
        data=record["data"]["md5"],
        policy=_trained([stage for stage in stages_behind(method) if stage not in untrained], found),
        reward=_trained(() if untrained else REWARD_STAGES, found),
        stages=[stage for stage in (*REWARD_STAGES, "held_out_reward", METHODS[method].stage) if stage in learned],
        rows=found and found.valid,
        quarantined=found and found.quarantined,
        unattributed=None if unattributed is None else _learned(unattributed),
    )


def _trained(behind: Sequence[str], found: Found | None) -> bool | None:
    """Return whether a model that these stages made was trained on the rows found; None if unknown."""
    if found is None:
        return None
    if not _trained_stages(found.valid).isdisjoint(behind):
        return True
    return False if _trained_stages(found.unattributed or {}).isdisjoint(behind) else None


def _learned(rows: RowCounts) -> int:
    return sum(rows.get(kind, {}).get(split, 0) for kind, split in TRAINED_ON)


def _trained_stages(rows: RowCounts) -> set[str]:
    return {stage for kind, splits in rows.items() for split in splits for stage in TRAINED_ON.get((kind, split), ())}
