"""Which versions stay when old results are deleted, and why; and what each of them needs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.common.errors import InputError
from tasks.registry.mlflow_runs.store import Store
from tasks.registry.promotion.champion import awaiting
from tasks.registry.promotion.decisions import MOVES, Decision, PolicyVersion, decisions_of, past_decisions
from tasks.registry.promotion.server_lock import TICKET_MODEL_SUFFIX
from tasks.registry.promotion.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    find_by_alias,
    is_policy_version,
    policy_versions,
)
from tasks.settings.params import Params

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

HELD = "held"
OPTIONAL = (PREVIOUS, CHALLENGER, HELD)  # the champion, and aliases that people have set, stay in any case
PARTS = ("policy", "reward", "sft", "base", "data")  # of a model record, each with a hash


class Rules(NamedTuple):
    """What stays beside the champion."""

    names: frozenset[str]  # of OPTIONAL
    numbers: frozenset[int]  # versions of the policy
    young_since: datetime


@dataclass
class Retained:
    """A version, and why it stays; without a reason it does not."""

    model: str
    version: int
    contents: frozenset[str]  # DVC's hashes of what export, trace and comparisons with it need
    keys: frozenset[str]  # of the stages behind it
    md5: str
    registered: "ModelVersion | None"  # None: only the decision log has it
    reasons: list[str] = field(default_factory=list)


def parse_rules(keep: str, young_since: datetime) -> Rules:
    """Read what people want to keep: names and numbers of versions, with commas.

    Raises:
        InputError: one is neither.
    """
    names = {name.strip() for name in keep.split(",")} - {"", CHAMPION}
    numbers = {name for name in names if name.isdecimal()}
    if unknown := sorted(names - numbers - {*OPTIONAL}):
        known = ", ".join((CHAMPION, *OPTIONAL))
        raise InputError(f"--keep does not know {unknown[0]}: give {known} or numbers of versions, with commas")
    return Rules(frozenset(names - numbers), frozenset(map(int, numbers)), young_since)


def retained(store: Store, params: Params, rules: Rules) -> list[Retained]:
    """List the versions of all policies in the registry and in the decision log, then those of the reward model.

    Those of other policies than `registry.policy` stay where they have an alias.
    """
    own = params.registry.policy
    found = _policies(store, own, rules)
    for version in found:
        if version.version in rules.numbers:
            version.reasons.append("named by --keep")
    if missing := sorted(rules.numbers - {version.version for version in found}):
        raise InputError(f"{own} has no version {missing[0]}: trueline history lists them")
    if HELD in rules.names:
        _keep_held(store, params, found)
    for name in sorted(_policy_names(store) - {own}):
        found += _policies(store, name, rules._replace(names=frozenset(OPTIONAL)))
    return found + _rewards(store, params, rules, found)


def released_aliases(store: Store, params: Params, going: Iterable[Retained]) -> list[tuple[str, str]]:
    """Find the aliases, with their registered models, that --keep gives up: no alias stays on deleted weights."""
    numbers = {(version.model, version.version) for version in going}
    names = params.registry.reward, params.registry.policy
    return [
        (name, alias)
        for name in names
        for alias, version in _aliases(store, name).items()
        if (name, int(version)) in numbers
    ]


def _policies(store: Store, name: str, rules: Rules) -> list[Retained]:
    registered = {int(found.version): found for found in _registered(store, name)}
    decisions, aliases = decisions_of(name), _aliases(store, name) or _logged_aliases(decisions_of(name))
    versions = []
    for policy in policy_versions(store, name):
        number, record = policy["version"], policy["record"]
        version = Retained(
            name,
            number,
            _contents(record),
            frozenset(filter(None, record["keys"].values())),
            policy["md5"],
            registered.get(number),
        )
        names = sorted(alias for alias, known in aliases.items() if int(known) == number)
        version.reasons += [alias for alias in names if alias not in OPTIONAL or alias in rules.names]
        if _is_young(version.registered, _decided(decisions, policy), rules):
            version.reasons.append("young")
        versions.append(version)
    return versions


def _keep_held(store: Store, params: Params, versions: Iterable[Retained]) -> None:
    """Keep what awaits approval now, or will again after a rollback."""
    champions = [find_by_alias(store, params, alias) for alias in (CHAMPION, PREVIOUS)]
    numbers = {number for each in champions for number in awaiting(params, each)}
    for version in versions:
        if version.version in numbers:
            version.reasons.append(HELD)


def _rewards(store: Store, params: Params, rules: Rules, policies: Iterable[Retained]) -> list[Retained]:
    """List the versions of the reward model; one stays with the policies that were made with it."""
    name = params.registry.reward
    aliases = _aliases(store, name)
    stay = [policy for policy in policies if policy.reasons]
    found = []
    for registered in _registered(store, name):
        number, md5 = int(registered.version), registered.tags.get("md5", "")
        version = Retained(name, number, frozenset(filter(None, [md5])), frozenset(), md5, registered)
        version.reasons += [
            alias for alias, known in aliases.items() if int(known) == number and alias not in (CHAMPION, *OPTIONAL)
        ]
        version.reasons += [f"of {policy.model} {policy.version}" for policy in stay if md5 in policy.contents]
        if _is_young(registered, None, rules):
            version.reasons.append("young")
        found.append(version)
    return sorted(found, key=lambda version: version.version)


def _contents(record: Mapping[str, Any]) -> frozenset[str]:
    hashes = [record.get(part, {}).get("md5") for part in PARTS]  # an early record lacks some
    return frozenset(filter(None, [*hashes, record["data"].get("ai_preferences")]))


def _policy_names(store: Store) -> set[str]:
    """Name every registered model that holds policies, and those of the decision log."""
    logged = {decision["policy"]["record"]["policy"]["name"] for decision in past_decisions()}
    names = {model.name for model in _paged(store.client.search_registered_models)}
    return logged | {
        name
        for name in names
        if not name.endswith(TICKET_MODEL_SUFFIX) and any(map(is_policy_version, _registered(store, name)))
    }


def _registered(store: Store, name: str) -> "list[ModelVersion]":
    return _paged(store.client.search_model_versions, filter_string=f"name = '{name}'")


def _paged(search: Any, **options: Any) -> list[Any]:  # noqa: ANN401 (MLflow's)
    found, token = [], None
    while True:
        page = search(**options, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _aliases(store: Store, name: str) -> dict[str, str]:
    models = store.client.search_registered_models(f"name = '{name}'")
    return dict(models[0].aliases) if models else {}


def _logged_aliases(decisions: list[Decision]) -> dict[str, str]:
    """Derive the aliases of a model that only the decision log has."""
    last = [decision for decision in decisions if decision["action"] in MOVES][-1:]
    found = {CHAMPION: last[0]["policy"], PREVIOUS: last[0]["previous"]} if last else {}
    return {alias: str(version["version"]) for alias, version in found.items() if version}


def _decided(decisions: list[Decision], policy: PolicyVersion) -> datetime | None:
    """Tell when somebody decided on a version last."""
    times = [decision["time"] for decision in decisions if decision["policy"]["md5"] == policy["md5"]]
    return max(map(datetime.fromisoformat, times), default=None)


def _is_young(registered: "ModelVersion | None", decided: datetime | None, rules: Rules) -> bool:
    created = registered and datetime.fromtimestamp(registered.creation_timestamp / 1000, UTC)
    newest = max((time for time in (created, decided) if time), default=None)
    return newest is None or newest >= rules.young_since
