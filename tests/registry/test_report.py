"""The report: the gate's page with lineage and cost in it, saved in the run of the evaluation."""

import re
import shutil
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.common.rounding import ABSENT
from tasks.registry.dvc_outputs import stages
from tasks.registry.lineage import report as lineage
from tasks.registry.lineage.report import MARKER, REPORT, address, energy, write_report
from tasks.registry.mlflow_runs import tracking
from tasks.registry.mlflow_runs.linked_runs import link_runs
from tasks.registry.mlflow_runs.resource_usage import ResourceUsage, resource_usages
from tasks.registry.mlflow_runs.store import Store, open_store
from tasks.registry.promotion import champion, human_evaluation
from tasks.registry.serving.figures import ServingRun
from tasks.registry.serving.versions import AliasReader
from tasks.settings.params import load_params
from tests.evaluation.test_report import WellFormed, page, response
from tests.registry.conftest import change_params, repro, run_again
from tests.registry.test_human_evaluation import FIGURES, VOTES

USAGE = ResourceUsage("sft", "ran", "1", 0, 9.0, 100.0, "cpu", "AMD EPYC, 2 logical cores", 500.0, None, None, None)


@pytest.fixture(scope="module")
def paged(finished, empty_database, tmp_path_factory):
    """The finished pipeline with a gate that writes a whole page, and an empty database; not to be changed."""
    folder = tmp_path_factory.mktemp("paged") / "checkout"
    shutil.copytree(finished, folder)
    shutil.copy(empty_database, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        give_page(page(responses=[response("a", 2.0, 1.0)]))
    return folder


@pytest.fixture
def params(paged, tmp_path, monkeypatch):
    """The settings of a copy of it, which is the working folder."""
    shutil.copytree(paged, tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "checkout")
    return load_params()


def give_page(html):
    Path("given/gate").mkdir(parents=True, exist_ok=True)
    Path("given/gate/report.html").write_text(html, encoding="utf-8")
    repro("gate", force=True, single_item=True)


def rows_of(html):
    """The text of every table row, without its tags."""
    rows = re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in rows]


def test_what_versions_did_where_they_were_served(params):
    champion.register(params)
    version = AliasReader(params).read("challenger")
    assert version
    ServingRun(params, version, "challenger, 10 %").write(
        {"requests": 40, "errors": 1, "thumbs_up": 3, "thumbs_down": 2, "seconds_p50": 0.25, "refusals": 0.125}
    )
    write_report(params)

    [row] = [row for row in rows_of(REPORT.read_text(encoding="utf-8")) if row.startswith("Candidate challenger, 10 %")]
    assert row.split()[6:-1] == ["40", "1", "0.250", *[ABSENT] * 3, "0.125", "3", "2"]


@pytest.mark.slow
def test_the_gates_page_gets_lineage_and_cost_and_stays_as_it_is(params, monkeypatch):
    figure = {"value": 0.75, "low": 0.7, "high": 0.8}
    figures = {name: {"candidate": figure, "sft": None} for name in ("drift", "agreement")}
    monkeypatch.setattr(lineage, "saved_freshness", lambda: figures)
    written = write_report(params)
    html = REPORT.read_text(encoding="utf-8")
    before, after = Path("reports/gate/report.html").read_text(encoding="utf-8").split(MARKER)
    assert html.startswith(before)
    assert html.endswith(after)
    assert "<h2>Lineage</h2>" in html
    assert "<h2>ResourceUsage</h2>" in html
    assert {"Candidate 0.750 [0.700, 0.800] 0.750 [0.700, 0.800]", "SFT — —"} <= set(rows_of(html))
    parser = WellFormed()
    parser.feed(html)
    assert parser.open == []
    assert "script" not in parser.seen
    assert all(address.startswith("data:image/svg+xml;base64,") for address in parser.addresses)
    assert written["path"] == ".trueline/report.html"
    assert written["address"] == ".trueline/report.html"


@pytest.mark.slow
def test_the_run_of_the_evaluation_keeps_it(params):
    written = write_report(params)
    client = open_store("trueline").client
    assert client.get_run(written["run_id"]).data.tags["stage"] == "evaluate"
    saved = Path(client.download_artifacts(written["run_id"], "report.html"))
    assert saved.read_bytes() == REPORT.read_bytes()
    assert write_report(params) == written  # again without harm
    assert [artifact.path for artifact in client.list_artifacts(written["run_id"])] == ["report.html"]


@pytest.mark.slow
def test_the_lineage_names_every_model_by_its_content(params):
    write_report(params)
    html = REPORT.read_text(encoding="utf-8")
    assert "nothing was measured." in html  # every run was restored
    rows = rows_of(html)
    for stage, start in (
        ("align", "Policy: not registered yet PPO, from the SFT model and the reward model"),
        ("reward", "Reward model: not registered yet from the SFT model and the preferences"),
        ("sft", "SFT model from the base model and the demonstrations"),
        ("base", f"Base model {params.base.source}"),
    ):
        (md5,) = [md5 for path, md5 in stages.output_hashes(stage).items() if path.startswith("models/")]
        assert f"{start} {md5}" in rows
    data = stages.output_hash("validate", Path("data/validate"))
    assert any(row.startswith("Data after checks") and row.endswith(str(data)) for row in rows)
    assert any(row.startswith("Opponent SFT: there was no champion") for row in rows)
    assert f"ppo.clip {params.ppo.clip}" in rows
    assert f"sft.learning_rate {params.sft.learning_rate}" in rows
    champion.register(params)
    write_report(params)
    assert any(row.startswith("Policy: trueline-policy version 1") for row in rows_of(REPORT.read_text()))


@pytest.mark.slow
def test_settings_that_differ_from_the_champions_stand_apart(params):
    champion.promote(params)
    change_params(sft={"learning_rate": 0.125})
    run_again(content=2)
    write_report(load_params())
    html = REPORT.read_text(encoding="utf-8")
    assert "Settings that differ from those of champion version 1." in html
    assert f"sft.learning_rate {params.sft.learning_rate} 0.125" in rows_of(html)
    assert any(row.startswith("Opponent champion version 1") for row in rows_of(html))


def test_a_run_tells_what_it_took_and_what_was_cut_off_before(params):
    with pytest.raises(KeyboardInterrupt), tracking.run("sft", params):
        raise KeyboardInterrupt
    with tracking.run("sft", params) as run:
        run.summary({"tokens": 1234})
    store = open_store("trueline")
    sft, *others = resource_usages(store, link_runs(store))
    assert (sft.stage, sft.status, sft.run_id, sft.unfinished, sft.tokens) == ("sft", "ran", run.id, 1, 1234.0)
    info = store.client.get_run(run.id).info
    assert sft.seconds == (info.end_time - info.start_time) / 1000
    assert sft.memory is not None
    assert sft.memory > 10
    assert [(usage.stage, usage.status) for usage in others] == [
        (stage, "restored") for stage in ("reward", "held_out_reward", "ppo", "evaluate")
    ]
    assert all((usage.seconds, usage.memory, usage.unfinished) == (None, None, 0) for usage in others)


@pytest.mark.slow
def test_what_was_reused_is_no_cost_of_this_result(params):
    with tracking.run("sft", params):
        pass
    write_report(params)
    change_params(align={"method": "dpo", "stage": "dpo"})
    repro()
    write_report(load_params())
    html = REPORT.read_text(encoding="utf-8")
    assert re.search(r"[0-9.]+ seconds in all, 0\.0 of them for this result\.", html)
    assert any(row.startswith("sft reused 0.") for row in rows_of(html))
    assert any(row.startswith("dpo restored — —") for row in rows_of(html))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "not readable on its machine"),
        ({"processor_energy": 7200.0}, "processor 2 Wh"),  # 3600 J are 1 Wh
        ({"device": "cuda", "gpu_energy": 1800.0}, "processor not readable; GPU 0.5 Wh"),
        ({"device": "cuda"}, "not readable on its machine"),
        ({"memory": None}, "not measured"),
    ],
)
def test_energy_is_shown_or_unknown(changes, words):
    assert energy(USAGE._replace(**changes)) == words


def test_a_server_shows_it_at_its_own_address():
    store = Store(None, "https://ada:secret@mlflow.example.org/", "7")  # type: ignore[arg-type]
    assert address(store, "abc") == "https://mlflow.example.org/#/experiments/7/runs/abc/artifacts/report.html"


@pytest.mark.slow
def test_what_people_voted_is_on_the_page_once_they_were_asked(params):
    write_report(params)
    assert "By people" not in REPORT.read_text(encoding="utf-8")
    human_evaluation.save_votes(params, str(stages.lock_key("evaluate")), FIGURES, VOTES)
    write_report(params)
    html = REPORT.read_text(encoding="utf-8")
    assert "<h2>By people</h2>" in html
    assert "0.750 [0.500, 1.000] 0.500 1.0000 2 3 2 inconclusive 9" in rows_of(html)
    assert "Krippendorff&#39;s alpha 0.25, Cohen&#39;s kappa 0.50." in html.replace("'", "&#39;")
    parser = WellFormed()
    parser.feed(html)
    assert parser.open == []


def test_a_pipeline_that_has_not_run_is_named_with_the_cure(params):
    Path("dvc.lock").unlink()
    with pytest.raises(InputError, match="run dvc repro or trueline run"):
        write_report(params)


@pytest.mark.slow
def test_a_page_without_the_mark_is_named_with_the_cure(params):
    give_page("<html>of an earlier release</html>")
    with pytest.raises(
        InputError, match=r"reports/gate/report.html has no marker .*: run dvc repro --force --single-item gate"
    ):
        write_report(params)
    assert not REPORT.exists()
