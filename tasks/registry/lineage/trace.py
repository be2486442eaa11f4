"""The reverse question: which versions were trained on this row, or on what came from this source or annotator?

A version's record names its data by hash, so the answer comes from what the version was trained on, not from what lies
in the working folder. Where DVC's cache has lost those data, or rows name no annotator, it is not known.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from tasks.common.errors import InputError
from tasks.common.files import STATE, read_jsonl, temporary_folder
from tasks.data.exclusions import SPELLINGS, What, add_exclusion
from tasks.data.names import as_name, stands_for
from tasks.data.records import TAGS, TYPES, Kind
from tasks.methods import METHODS, stages_behind
from tasks.registry.dvc_outputs.cache import NotCachedError, materialise
from tasks.registry.dvc_outputs.graph import stages_after
from tasks.registry.export.card import has_reward_model
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion.decisions import MOVES, PolicyVersion, past_decisions
from tasks.registry.promotion.versions import all_policy_versions
from tasks.settings.params import Params

# Which stages learn from the rows of a kind and split. The other rows are only measured on, but for one use: the
# demonstrations held out for validation set the scale of the reward model's and the judge's scores.
LEARN = {
    ("demonstrations", "train"): ("sft",),
    ("preferences", "train"): (
        "reward",
        *(name for name, each in METHODS.items() if "preferences" in each.learns_from),
    ),
    ("preferences", "validation"): ("held_out_reward",),
    ("prompts", "train"): tuple(name for name, each in METHODS.items() if "prompts" in each.learns_from),
}
# Which of these stages are behind a model. The judge is behind none: it only has a veto at the gate.
BEHIND_REWARD = ("sft", "reward")
LINKS = ("reflink", "symlink", "hardlink", "copy")  # only to be read, and deleted at once
Rows = dict[str, dict[str, int]]  # how many, by kind and split


class Found(NamedTuple):
    """What a version's data hold of a row, source or annotator."""

    kept: Rows
    quarantined: int  # rows that the checks kept from every stage
    unattributed: Rows | None  # kept rows that may be the annotator's, as they name none; None where none is asked for


class Traced(TypedDict):
    """What is known of a policy version. None is not a no: data are lost or name no annotator, so nobody can tell."""

    version: int
    reward_version: int
    promoted: bool  # whether it has ever been champion
    method: str
    data: str  # DVC's hash
    policy: bool | None  # whether the policy was trained on it, itself or in a model it was made from
    reward: bool | None  # whether the reward model was
    stages: list[str]  # that learned from it
    rows: Rows | None  # kept, by kind and split; what no stage learned from was only measured on
    quarantined: int | None
    unattributed: int | None  # rows that stages learned from and that name no annotator; only where one is asked for


class Trace(TypedDict):
    """The answer for every version that was ever registered, oldest first."""

    what: What
    name: str
    versions: list[Traced]
    in_any: bool  # whether any data that could be read hold it, in quarantine or not


class Excluded(TypedDict):
    """What was done, and what is left to do."""

    file: str
    added: bool  # False where the file named it already
    stages: list[str]  # that a run goes through again


def trace(params: Params, what: What, name: str) -> Trace:
    """Tell of every version ever registered, promoted or not, whether it was trained on a row, source or annotator.

    Args:
        params: all settings.
        what: whether `name` is the id of a row or the name of a source or annotator.
        name: as data/prepare has it, or spelt another way; a folder's name stands for the sources in it.

    Raises:
        InputError: nothing has been registered, a row of data or of the record is damaged, or MLflow is away.
    """
    asked, name = name, SPELLINGS[what](name)
    if not name:
        raise InputError(f"{asked!r} names nothing: name one {what}")
    holders = all_policy_versions(open_store(params.registry.experiment), params)
    if not holders:
        raise InputError(f"{params.registry.policy} has no version yet, so none was trained on it: run trueline run")
    promoted = {decision["policy"]["md5"] for decision in past_decisions() if decision["action"] in MOVES}
    found = {md5: _look(md5, what, name) for md5 in dict.fromkeys(each["record"]["data"]["md5"] for each in holders)}
    versions = [_traced(each, each["md5"] in promoted, found[each["record"]["data"]["md5"]]) for each in holders]
    in_any = any(each is not None and (each.kept or each.quarantined) for each in found.values())
    return Trace(what=what, name=name, versions=versions, in_any=in_any)


def exclude(params: Params, what: What, name: str) -> Excluded:
    """Have `prepare` leave a row, source or annotator out from now on; nothing is run, and raw data stay as they are.

    Raises:
        InputError: the file of exclusions must be mended, or DVC cannot read the pipeline.
    """
    stages = stages_after("prepare")
    added = add_exclusion(Path(params.prepare.exclude), what, name)
    return Excluded(file=params.prepare.exclude, added=added, stages=stages)


def _look(md5: str, what: What, name: str) -> Found | None:
    """Count what a version's data hold of it; None where DVC's cache lacks them."""
    field = "id" if what == "row" else what
    with temporary_folder(STATE / "traced") as folder:  # beside the cache, where a link can lead to it
        data = (folder / "data").absolute()
        try:
            materialise(md5, data, LINKS, what=f"data {md5}")
        except NotCachedError:
            return None
        kept = _count(data, TYPES, field, name)
        annotated = [kind for kind in TYPES if TAGS[kind] == what]
        unattributed = _count(data, annotated, field, None) if annotated else None
        quarantine = data / "quarantine.jsonl"
        lines = read_jsonl(quarantine) if quarantine.exists() else ()
        return Found(kept, sum(_has(line["record"], field, name) for line in lines), unattributed)


def _count(data: Path, kinds: Iterable[Kind], field: str, name: str | None) -> Rows:
    """Count the kept rows that have a name in a field."""
    counts = {
        kind: Counter(row["split"] for row in read_jsonl(data / f"{kind}.jsonl") if _has(row, field, name))
        for kind in kinds
    }
    return {kind: dict(sorted(splits.items())) for kind, splits in counts.items() if splits}


def _has(row: Mapping[str, Any], field: str, name: str | None) -> bool:
    """Tell whether a row has a name in a field; data from before the field was thought of have none there.

    Data from before names had today's spelling have another. Of a pair that several annotators judged, every vote has
    an annotator, an id and a source.
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
    learned = _learners(found.kept) - untrained if found else set()
    unattributed = found.unattributed if found else None
    return Traced(
        version=policy["version"],
        reward_version=policy["reward_version"],
        promoted=promoted,
        method=method,
        data=record["data"]["md5"],
        policy=_trained([stage for stage in stages_behind(method) if stage not in untrained], found),
        reward=_trained(() if untrained else BEHIND_REWARD, found),
        stages=[stage for stage in (*BEHIND_REWARD, "held_out_reward", method) if stage in learned],
        rows=found and found.kept,
        quarantined=found and found.quarantined,
        unattributed=None if unattributed is None else _learned(unattributed),
    )


def _trained(behind: Sequence[str], found: Found | None) -> bool | None:
    """Tell whether a model that these stages are behind was trained on what was found."""
    if found is None:
        return None
    if not _learners(found.kept).isdisjoint(behind):
        return True
    return False if _learners(found.unattributed or {}).isdisjoint(behind) else None


def _learned(rows: Rows) -> int:
    return sum(rows.get(kind, {}).get(split, 0) for kind, split in LEARN)


def _learners(rows: Rows) -> set[str]:
    return {stage for kind, splits in rows.items() for split in splits for stage in LEARN.get((kind, split), ())}
