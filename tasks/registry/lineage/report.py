"""The report of a run: the gate's page with human evaluation, lineage and resource usage added.

The gate's page is an output of DVC and follows from files alone. Votes, seconds, machines, version numbers and run ids
do not, so they are inserted here, at a marker in the gate's page.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from tasks.common.errors import InputError
from tasks.common.files import REPORTS, STATE, replacing
from tasks.common.html_templates import html_templates
from tasks.common.rounding import chance, number
from tasks.common.safe_text import without_secrets
from tasks.methods import METHODS
from tasks.registry.dvc_outputs.cache import materialise
from tasks.registry.dvc_outputs.stages import output_hash
from tasks.registry.lineage.freshness import saved_freshness
from tasks.registry.mlflow_runs.linked_runs import link_runs, trained_record
from tasks.registry.mlflow_runs.resource_usage import ResourceUsage, resource_usages
from tasks.registry.mlflow_runs.store import Store, open_store
from tasks.registry.promotion.apply_decisions import apply_pending
from tasks.registry.promotion.decisions import checkout_lock
from tasks.registry.promotion.human_evaluation import saved_figures
from tasks.registry.promotion.versions import find, find_version, read_policy_version
from tasks.registry.serving.figures import served
from tasks.settings.fingerprint import flatten
from tasks.settings.params import Params

REPORT = STATE / "report.html"
GATE = REPORTS / "gate"
TEMPLATE = "lineage.html.j2"
MARKER = "<!-- lineage and cost -->"  # escaped text cannot contain it


class Written(TypedDict):
    """Where a report is."""

    path: str
    address: str  # on the tracking server, if there is one; else the path of the file
    run_id: str  # of the evaluation, which has it as an artifact


class Setting(NamedTuple):
    """A setting as text, and the opponent's value if it differs."""

    name: str
    value: str
    opponent: str | None


def write_report(params: Params) -> Written:
    """Write .trueline/report.html of the result in dvc.lock, and log it in MLflow with the run of its evaluation.

    Raises:
        InputError: the pipeline has not finished, its results do not belong together, DVC's cache lacks the gate's
            page, the decision log is behind the registry, or MLflow cannot be reached.
    """
    with checkout_lock():
        store = open_store(params.registry.experiment)
        apply_pending(store, params)
        usages = resource_usages(store, link_runs(store))
        gate_page = _gate_page()
        run_id = next(usage.run_id for usage in usages if usage.stage == "evaluate")
        page = _with_sections(gate_page, _render(store, params, usages, saved_figures(store, run_id)))
        with replacing(REPORT) as draft:
            draft.write_text(page, encoding="utf-8")
        store.client.log_artifact(run_id, str(REPORT))
    return Written(path=REPORT.as_posix(), address=address(store, run_id), run_id=run_id)


def _gate_page() -> str:
    md5 = output_hash("gate", GATE)
    if md5 is None:
        raise InputError(f"dvc.lock has no {GATE}: run dvc repro or trueline run")
    with tempfile.TemporaryDirectory() as folder:
        materialise(md5, Path(folder, "gate"))
        return Path(folder, "gate", REPORT.name).read_text(encoding="utf-8")


def _with_sections(page: str, sections: str) -> str:
    if MARKER not in page:
        raise InputError(
            f"{GATE / REPORT.name} has no marker for lineage and cost: run dvc repro --force --single-item gate"
        )
    return page.replace(MARKER, sections)


def _render(store: Store, params: Params, usages: Sequence[ResourceUsage], people: Mapping[str, Any] | None) -> str:
    record, names = trained_record(store, params), params.registry
    policy = find_version(store, names.policy, record["policy"]["md5"])
    reward = find_version(store, names.reward, record["reward"]["md5"])
    opponent_version = record["opponent"]["version"]
    opponent_settings = {}
    if opponent_version:
        opponent_settings = read_policy_version(find(store, params, str(opponent_version)))["record"]["params"]
    md5s = {"Candidate": record["policy"]["md5"], "Opponent": record["opponent"]["policy"]}
    environment = html_templates(Path(__file__).parent)
    environment.filters |= {"number": number, "chance": chance, "energy": energy}
    settings = _settings(record["params"], opponent_settings)
    return environment.get_template(TEMPLATE).render(
        record=record,
        method=METHODS[record["method"]],
        people=people,
        served=served(store, {name: md5 for name, md5 in md5s.items() if md5}),
        freshness=saved_freshness(),
        policy=f"{names.policy} version {policy.version}" if policy else "not registered yet",
        reward=f"{names.reward} version {reward.version}" if reward else "not registered yet",
        base=_named(record["base"]["source"], record),
        sources=_sources(record),
        opponent_version=opponent_version,
        settings=settings,
        changed=[setting for setting in settings if setting.opponent is not None],
        usages=usages,
        total=sum(usage.seconds or 0 for usage in usages),
        for_this_result=sum(usage.seconds or 0 for usage in usages if usage.status == "ran"),
    )


def _sources(record: Mapping[str, Any]) -> str:
    """Name the sources of the data."""
    kinds = record["params"].get("prepare", {}).values()
    found = {kind["source"] for kind in kinds if isinstance(kind, Mapping) and "source" in kind}
    pointers = record["hub"].keys() - {record["base"]["source"]}  # a pointer may lie in a folder that is a source
    return ", ".join(_named(source, record) for source in sorted(found | pointers))


def _named(source: str, record: Mapping[str, Any]) -> str:
    """Name a source, with repository and revision if it is on a hub."""
    pointer = record["hub"].get(source)
    return f"{source} ({pointer['hub']} at {pointer['revision']})" if pointer else source


def _settings(params: Mapping[str, Any], opponent: Mapping[str, Any]) -> list[Setting]:
    ours, theirs = flatten(params), flatten(opponent)
    return [
        Setting(name, str(value), str(theirs[name]) if theirs.get(name, value) != value else None)
        for name, value in sorted(ours.items())
    ]


def energy(usage: ResourceUsage) -> str:
    """Describe the energy that was measured and what could not be measured."""
    if usage.memory is None:
        return "not measured"
    parts = {"processor": usage.processor_energy} | ({"GPU": usage.gpu_energy} if usage.device == "cuda" else {})
    if all(joules is None for joules in parts.values()):
        return "not readable on its machine"
    return "; ".join(
        f"{part} {'not readable' if joules is None else f'{joules / 3600:.3g} Wh'}" for part, joules in parts.items()
    )


def address(store: Store, run_id: str) -> str:
    """Return where people see the report: on the run's page on the tracking server, or else the file itself."""
    if store.uri.startswith("http"):
        server = without_secrets(store.uri).rstrip("/")
        return f"{server}/#/experiments/{store.experiment_id}/runs/{run_id}/artifacts/{REPORT.name}"
    return REPORT.as_posix()  # relative to the checkout: a page of Prefect links to it, too
