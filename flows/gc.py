"""Deleting what nothing needs in DVC's cache, in its default remote and in MLflow, after a look at all three."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from flows.processes.locks import one_flow_at_a_time
from tasks.common.errors import InputError
from tasks.common.progress import running
from tasks.registry.dvc_outputs.garbage import Roots, Survey, Surveyed, delete, surveyed
from tasks.registry.dvc_outputs.named_contents import Named, named_contents
from tasks.registry.export.deleted_weights import WEIGHTS_DELETED, Size, delete_weights, weights_size
from tasks.registry.mlflow_runs.store import Store, open_store
from tasks.registry.promotion.apply_decisions import apply_pending
from tasks.registry.promotion.decisions import checkout_lock
from tasks.registry.promotion.retention import Retained, parse_rules, released_aliases, retained
from tasks.registry.promotion.server_lock import ServerLock, lock_server
from tasks.settings.params import Params

RECENT = "same bytes as a recent result"


class Registry(NamedTuple):
    """The registry while no other process changes it."""

    store: Store
    lock: ServerLock


def collect_garbage(params: Params, keep: str, days: int, *, yes: bool, now: datetime | None = None) -> dict[str, Any]:
    """Look for what no kept version, no branch and no recent result needs, and delete it with `yes`.

    Args:
        params: all settings.
        keep: what stays beside the champion: previous, challenger, held and numbers of versions, with commas.
        days: what is younger stays, wherever it lies.
        yes: whether to delete; else nothing changes.
        now: from when the days are counted; else from the present.

    Returns:
        deleted, days, places (name, objects, bytes, young), versions (model, version, reasons; without any it goes),
        aliases (given up), named_by (where contents are named that stay), lacking, left_alone.

    Raises:
        InputError: something runs in this checkout, the decision log is behind the registry, MLflow, git or DVC's
            remote cannot be asked, or `keep` names what is not there.
    """
    now = now or datetime.now(UTC)
    rules = parse_rules(keep, now - timedelta(days=days))
    with _alone(params) as (store, lock):
        versions, named = retained(store, params, rules), named_contents()
        staying = [version for version in versions if version.reasons]
        of_versions = set[str]().union(*(version.contents for version in staying))
        contents = of_versions.union(*(each.contents for each in named.values()))
        cached = of_versions.union(*(each.outputs for each in named.values()))
        roots = Roots(frozenset(contents), frozenset[str]().union(*(version.keys for version in staying)))
        with surveyed(roots, rules.young_since) as found:
            going = _going(versions, named, found)
            registered = [version.registered for version in going if version.registered]
            sizes = [weights_size(store, version) for version in registered]
            released = released_aliases(store, params, going)
            result: dict[str, Any] = {
                "deleted": yes,
                "days": days,
                "places": [*map(_shown_place, found.places), _in_mlflow(sizes)],
                "versions": [*map(_shown, versions)],
                "aliases": released,
                "named_by": list(named),
                "lacking": [md5 for md5 in found.lacking if md5 in cached],
                "left_alone": found.left_alone,
            }
            if yes:
                lock.check()
                for model, alias in released:
                    store.client.delete_registered_model_alias(model, alias)
                for version in registered:
                    delete_weights(store, version, now.date().isoformat())
                for place in found.places:
                    lock.check()
                    delete(place)
    return result


@contextmanager
def _alone(params: Params) -> Iterator[Registry]:
    """Keep runs of this checkout, and changes of the registry, away for a block."""
    with one_flow_at_a_time():
        if stages := running():
            raise InputError(f"{stages[0].stage} runs in this checkout (process {stages[0].pid}): wait for it")
        with checkout_lock():
            store = open_store(params.registry.experiment)
            with lock_server(store, params.registry.policy) as lock:
                apply_pending(store, params, lock)
                yield Registry(store, lock)


def _going(versions: Iterable[Retained], named: dict[str, Named], found: Surveyed) -> list[Retained]:
    """Choose the versions that lose their weights; note of the others what keeps these."""
    for version in versions:
        if not version.reasons:
            version.reasons += [place for place, hashes in named.items() if version.md5 in hashes.contents][:1]
        if not version.reasons and version.md5 in found.needed:
            version.reasons.append(RECENT)
    return [version for version in versions if not version.reasons]


def _shown_place(survey: Survey) -> dict[str, Any]:
    return {
        "place": survey.place.name,
        "objects": len(survey.objects) + len(survey.runs),
        "bytes": survey.size,
        "young": survey.young,
    }


def _in_mlflow(sizes: list[Size]) -> dict[str, Any]:
    return {
        "place": "MLflow",
        "objects": sum(size.files for size in sizes),
        "bytes": sum(size.size for size in sizes),
        "young": 0,
    }


def _shown(version: Retained) -> dict[str, Any]:
    tags = version.registered.tags if version.registered else {}
    return {
        "model": version.model,
        "version": version.version,
        "reasons": version.reasons,
        "weights_deleted": tags.get(WEIGHTS_DELETED),
    }
