"""The reverse question: which versions were trained on this row, or on what came from this source?

A version's account names its data by hash, so the answer comes from what the version was trained on, not from what lies
in the working folder. Where DVC's cache has lost those data, the answer is that it is not known.
"""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from tasks.data.exclusions import What, add_exclusion
from tasks.data.files import STATE, read_jsonl
from tasks.data.records import TYPES
from tasks.errors import InputError
from tasks.params import Params
from tasks.registry.decisions import MOVES, Holder, past_decisions
from tasks.registry.stages import NotCachedError, materialise, stages_after
from tasks.registry.store import open_store
from tasks.registry.versions import every_holder

# Which stages learn from the rows of a kind and split. The other rows are only measured on, but for one use: the
# demonstrations held out for validation set the scale of the reward model's and the judge's scores.
LEARN = {
    ("demonstrations", "train"): ("sft",),
    ("preferences", "train"): ("reward", "dpo"),
    ("preferences", "validation"): ("judge",),
    ("prompts", "train"): ("ppo",),
}
# Which of these stages are behind a model. The judge is behind none: it only has a veto at the gate.
BEHIND_REWARD = ("sft", "reward")
BEHIND_POLICY = {"dpo": ("sft", "dpo"), "ppo": ("sft", "reward", "ppo")}
LINKS = ("reflink", "symlink", "hardlink", "copy")  # only to be read, and deleted at once


class Found(NamedTuple):
    """What a version's data hold of a row or source."""

    kept: dict[str, dict[str, int]]  # rows by kind and split
    quarantined: int  # rows that the checks kept from every stage


class Traced(TypedDict):
    """What is known of a policy version. None is not a no: the cache has lost the data, so nobody can tell."""

    version: int
    reward_version: int
    promoted: bool  # whether it has ever been champion
    method: str
    data: str  # DVC's hash
    policy: bool | None  # whether the policy was trained on it, itself or in a model it was made from
    reward: bool | None  # whether the reward model was
    stages: list[str]  # that learned from it
    rows: dict[str, dict[str, int]] | None  # kept, by kind and split; what no stage learned from was only measured on
    quarantined: int | None


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
    """Tell of every version ever registered, promoted or not, whether it was trained on a row or source.

    Args:
        params: all settings.
        what: whether `name` is the id of a row or the name of a source.
        name: as data/prepare has it.

    Raises:
        InputError: nothing has been registered, a row of data or of the record is damaged, or MLflow is away.
    """
    holders = every_holder(open_store(params.registry.experiment), params)
    if not holders:
        raise InputError(f"{params.registry.policy} has no version yet, so none was trained on it: run trueline run")
    promoted = {decision["policy"]["md5"] for decision in past_decisions() if decision["action"] in MOVES}
    found = {md5: _look(md5, what, name) for md5 in dict.fromkeys(each["account"]["data"]["md5"] for each in holders)}
    versions = [_traced(each, each["md5"] in promoted, found[each["account"]["data"]["md5"]]) for each in holders]
    in_any = any(each is not None and (each.kept or each.quarantined) for each in found.values())
    return Trace(what=what, name=name, versions=versions, in_any=in_any)


def exclude(params: Params, what: What, name: str) -> Excluded:
    """Have `prepare` leave a row or source out from now on; nothing is run, and the raw data stay as they are.

    Raises:
        InputError: the file of exclusions must be mended, or DVC cannot read the pipeline.
    """
    stages = stages_after("prepare")
    added = add_exclusion(Path(params.prepare.exclude), what, name)
    return Excluded(file=params.prepare.exclude, added=added, stages=stages)


def _look(md5: str, what: What, name: str) -> Found | None:
    """Count what a version's data hold of it; None where DVC's cache lacks them."""
    field = "id" if what == "row" else "source"
    STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STATE) as folder:  # beside the cache, where a link can lead to it
        data = Path(folder, "data").absolute()
        try:
            materialise(md5, data, LINKS)
        except NotCachedError:
            return None
        splits = {kind: _count(data / f"{kind}.jsonl", field, name) for kind in TYPES}
        quarantine = data / "quarantine.jsonl"
        quarantined = sum(row.get(field) == name for row in read_jsonl(quarantine)) if quarantine.exists() else 0
    return Found({kind: dict(sorted(counts.items())) for kind, counts in splits.items() if counts}, quarantined)


def _count(path: Path, field: str, name: str) -> Counter[str]:
    return Counter(row["split"] for row in read_jsonl(path) if row[field] == name)


def _traced(holder: Holder, promoted: bool, found: Found | None) -> Traced:
    account: dict[str, Any] = holder["account"]
    method = account["method"]
    run = (*BEHIND_REWARD, "judge", method)
    learned = {stage for place in _places(found) for stage in LEARN.get(place, ()) if stage in run}
    return Traced(
        version=holder["version"],
        reward_version=holder["reward_version"],
        promoted=promoted,
        method=method,
        data=account["data"]["md5"],
        policy=None if found is None else not learned.isdisjoint(BEHIND_POLICY[method]),
        reward=None if found is None else not learned.isdisjoint(BEHIND_REWARD),
        stages=[stage for stage in run if stage in learned],
        rows=found and found.kept,
        quarantined=found and found.quarantined,
    )


def _places(found: Found | None) -> list[tuple[str, str]]:
    return [(kind, split) for kind, splits in found.kept.items() for split in splits] if found else []
