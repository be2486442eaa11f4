"""The report of a run: the gate's page, and in it people's word, lineage and cost, which no output of DVC's may hold.

The gate's page follows from files alone. Votes, seconds, machines, version numbers and the ids of runs do not, so they
come in here, where the gate has left a mark for them.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.common.errors import InputError
from tasks.common.escapes import into_html
from tasks.common.files import REPORTS, STATE, replacing
from tasks.common.rounding import chance, number
from tasks.common.safe_text import without_secrets
from tasks.registry.dvc_outputs.cache import materialise
from tasks.registry.dvc_outputs.stages import output_hash
from tasks.registry.mlflow_runs.lookup import link_runs, trained_account
from tasks.registry.mlflow_runs.resource_usage import Cost, costs
from tasks.registry.mlflow_runs.store import Store, open_store
from tasks.registry.promotion.decisions import one_at_a_time
from tasks.registry.promotion.human_evaluation import kept
from tasks.registry.promotion.versions import as_holder, find, find_version, settle
from tasks.settings.fingerprint import flatten
from tasks.settings.params import Params

REPORT = STATE / "report.html"
GATE = REPORTS / "gate"
TEMPLATE = "lineage.html.j2"
MARK = "<!-- lineage and cost -->"  # escaped text cannot hold it


class Written(TypedDict):
    """Where a report can be seen."""

    path: str
    address: str  # on the tracking server, where there is one; else of the file
    run_id: str  # of the evaluation, which keeps it as an artifact


class Setting(NamedTuple):
    """A parameter as text, and the opponent's where there is one with another."""

    name: str
    value: str
    before: str | None


def write_report(params: Params) -> Written:
    """Write .trueline/report.html of the result in dvc.lock, and keep it in MLflow with the run of its evaluation.

    Raises:
        InputError: the pipeline has not run to its end, its results do not belong together, DVC's cache lacks the
            gate's page, the record is behind the registry, or MLflow is away.
    """
    with one_at_a_time():
        store = open_store(params.registry.experiment)
        settle(store, params)
        spent = costs(store, link_runs(store))
        before = _gates_page()
        run_id = next(cost.run_id for cost in spent if cost.stage == "evaluate")
        page = _with_sections(before, _render(store, params, spent, kept(store, run_id)))
        with replacing(REPORT) as draft:
            draft.write_text(page, encoding="utf-8")
        store.client.log_artifact(run_id, str(REPORT))
    return Written(path=REPORT.as_posix(), address=address(store, run_id), run_id=run_id)


def _gates_page() -> str:
    md5 = output_hash("gate", GATE)
    if md5 is None:
        raise InputError(f"dvc.lock has no {GATE}: run dvc repro or trueline run")
    with tempfile.TemporaryDirectory() as folder:
        materialise(md5, Path(folder, "gate"))
        return Path(folder, "gate", REPORT.name).read_text(encoding="utf-8")


def _with_sections(page: str, sections: str) -> str:
    if MARK not in page:
        raise InputError(
            f"{GATE / REPORT.name} has no place for lineage and cost: run dvc repro --force --single-item gate"
        )
    return page.replace(MARK, sections)


def _render(store: Store, params: Params, spent: Sequence[Cost], people: Mapping[str, Any] | None) -> str:
    account, names = trained_account(store, params), params.registry
    policy = find_version(store, names.policy, account["policy"]["md5"])
    reward = find_version(store, names.reward, account["reward"]["md5"])
    rival = account["opponent"]["version"]
    before = as_holder(find(store, params, str(rival)))["account"]["params"] if rival else {}
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=into_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "chance": chance, "energy": energy}
    settings = _settings(account["params"], before)
    return environment.get_template(TEMPLATE).render(
        account=account,
        people=people,
        policy=f"{names.policy} version {policy.version}" if policy else "not registered yet",
        reward=f"{names.reward} version {reward.version}" if reward else "not registered yet",
        base=_named(account["base"]["source"], account),
        sources=_sources(account),
        rival=rival,
        settings=settings,
        changed=[setting for setting in settings if setting.before is not None],
        costs=spent,
        total=sum(cost.seconds or 0 for cost in spent),
        spent_now=sum(cost.seconds or 0 for cost in spent if cost.status == "ran"),
    )


def _sources(account: Mapping[str, Any]) -> str:
    """Name what the data were read from."""
    kinds = account["params"].get("prepare", {}).values()
    found = {kind["source"] for kind in kinds if isinstance(kind, Mapping) and "source" in kind}
    pointers = account["hub"].keys() - {account["base"]["source"]}  # which may lie in a source that is a folder
    return ", ".join(_named(source, account) for source in sorted(found | pointers))


def _named(source: str, account: Mapping[str, Any]) -> str:
    """Name a source, with repository and revision where it points to a hub."""
    pointer = account["hub"].get(source)
    return f"{source} ({pointer['hub']} at {pointer['revision']})" if pointer else source


def _settings(params: Mapping[str, Any], before: Mapping[str, Any]) -> list[Setting]:
    ours, theirs = flatten(params), flatten(before)
    return [
        Setting(name, str(value), str(theirs[name]) if theirs.get(name, value) != value else None)
        for name, value in sorted(ours.items())
    ]


def energy(cost: Cost) -> str:
    """Tell what was counted and what could not be; a run that was not watched says neither."""
    if cost.memory is None:
        return "not measured"
    parts = {"processor": cost.processor_energy} | ({"GPU": cost.gpu_energy} if cost.device == "cuda" else {})
    if all(joules is None for joules in parts.values()):
        return "not readable on its machine"
    return "; ".join(
        f"{part} {'not readable' if joules is None else f'{joules / 3600:.3g} Wh'}" for part, joules in parts.items()
    )


def address(store: Store, run_id: str) -> str:
    """Tell where people see the report: on the tracking server's page of the run, or else the file itself."""
    if store.uri.startswith("http"):
        server = without_secrets(store.uri).rstrip("/")
        return f"{server}/#/experiments/{store.experiment_id}/runs/{run_id}/artifacts/{REPORT.name}"
    return REPORT.as_posix()  # from the checkout: a page of Prefect's links to it, too
