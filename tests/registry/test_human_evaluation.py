"""The evaluation people are asked about is that of dvc.lock, and its run keeps their votes."""

import json
import math
import shutil
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.evaluation.compare import WinRate
from tasks.registry.mlflow_runs.linked_runs import link_runs
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import champion
from tasks.registry.promotion.human_evaluation import evaluation, save_votes, saved_figures
from tasks.settings.params import load_params
from tests.registry.conftest import add_params, change_params, repro

ROWS = [{"id": "a1", "prompt": [{"role": "user", "content": "Hi"}], "candidate": {"answer": "ü"}}, {"id": "b2"}]
WON = WinRate(0.75, 0.5, 1.0, ties=0.5, wins=1, losses=0, sign_test=1.0, conclusion="inconclusive", prompts_needed=9)
FIGURES = {
    "prompts": 2,
    "same_answers": 3,
    "votes": 3,
    "annotators": {"ann / 1": 2, "ben": 1},
    "alpha": 0.25,
    "kappa": 0.5,
    "left_preferred": 0.5,
    "vs_opponent": WON._asdict(),
    "confidence": 0.95,
}
VOTES = [
    {"prompt": "a1", "annotator": "ann / 1", "choice": "left", "candidate": "left"},
    {"prompt": "a1", "annotator": "ben", "choice": "same", "candidate": "left"},
]


@pytest.fixture(scope="module")
def answered(finished, empty_database, tmp_path_factory):
    """The finished pipeline with an evaluation that has answers, and an empty database; not to be changed."""
    folder = tmp_path_factory.mktemp("answered") / "checkout"
    shutil.copytree(finished, folder)
    shutil.copy(empty_database, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("given/evaluate").mkdir(parents=True)
        Path("given/evaluate/responses.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
        add_params(evaluate=["evaluate"])
        repro()
    return folder


@pytest.fixture
def params(answered, tmp_path, monkeypatch):
    """The settings of a copy of it, which is the working folder."""
    shutil.copytree(answered, tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "checkout")
    return load_params()


def run_of_the_evaluation():
    store = open_store("trueline")
    run_id = next(linked.run_id for linked in link_runs(store) if linked.stage == "evaluate")
    return store, run_id


def test_the_evaluation_is_that_of_the_lock_whatever_has_changed_since(params):
    Path("reports/evaluate/responses.jsonl").write_text("{}\n")
    change_params(evaluate={"bootstrap": 777, "confidence": 0.5001})
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("seed: 7", "seed: 8"))
    assert load_params().seed == 8
    found = evaluation()
    assert found.responses == ROWS
    assert found[2:] == (params.seed, params.evaluate.bootstrap, params.evaluate.confidence)


@pytest.mark.slow
def test_a_new_champion_leaves_the_evaluation_as_it_is(params):
    before = evaluation()
    assert champion.promote(params)["promoted"]
    assert evaluation() == before
    run_id = save_votes(params, evaluation().key, FIGURES, VOTES)
    assert run_id == run_of_the_evaluation()[1]


def test_an_earlier_lock_brings_its_evaluation_back(params):
    lock = Path("dvc.lock").read_bytes()
    Path("given/evaluate/responses.jsonl").write_text('{"id": "new"}\n')
    repro("evaluate", force=True, single_item=True)
    assert evaluation().responses == [{"id": "new"}]
    Path("dvc.lock").write_bytes(lock)
    assert evaluation().responses == ROWS


def test_votes_are_not_saved_with_another_evaluation_than_people_were_asked_about(params):
    asked = evaluation().key
    change_params(evaluate={"bootstrap": 777})
    repro("evaluate", force=True, single_item=True)
    with pytest.raises(InputError, match=r"dvc\.lock has another evaluation than the annotation sheets: restore"):
        save_votes(params, asked, FIGURES, VOTES)


def test_without_an_evaluation_the_cure_is_named(params):
    Path("dvc.lock").unlink()
    with pytest.raises(InputError, match=r"dvc.lock has no reports/evaluate: run dvc repro or trueline run"):
        evaluation()


def test_an_evaluation_that_the_cache_lacks_is_named_with_the_cure(params):
    shutil.rmtree(".dvc/cache")
    with pytest.raises(InputError, match=r"DVC's cache lacks .*: run dvc fetch"):
        evaluation()


def test_the_run_keeps_figures_and_votes(params):
    run_id = save_votes(params, evaluation().key, FIGURES, VOTES)
    store, expected = run_of_the_evaluation()
    assert run_id == expected
    assert saved_figures(store, run_id) == FIGURES
    metrics = store.client.get_run(run_id).data.metrics
    noted = {name.removeprefix("people/"): value for name, value in metrics.items() if name.startswith("people/")}
    numbers = {name: value for name, value in FIGURES.items() if not isinstance(value, dict)}
    won = {f"vs_opponent.{name}": value for name, value in WON._asdict().items() if name != "conclusion"}
    assert noted == numbers | won | {"annotators": 2}
    table = Path(store.client.download_artifacts(run_id, "people/votes.csv"))
    assert table.read_text() == "prompt,annotator,choice,candidate\na1,ann / 1,left,left\na1,ben,same,left\n"


def test_figures_of_an_earlier_release_are_read_with_the_names_of_today(params):
    earlier = {"conclusion": "verdict", "prompts_needed": "prompts_to_settle"}
    won = {earlier.get(name, name): value for name, value in WON._asdict().items()}
    run_id = save_votes(params, evaluation().key, FIGURES | {"vs_opponent": won}, VOTES)
    assert saved_figures(run_of_the_evaluation()[0], run_id) == FIGURES


@pytest.mark.slow
def test_a_second_reading_takes_the_place_of_the_first(params):
    save_votes(params, evaluation().key, FIGURES, VOTES)
    fewer = FIGURES | {"votes": 1, "annotators": {"ben": 1}, "alpha": None, "kappa": None}
    run_id = save_votes(params, evaluation().key, fewer, VOTES[1:])
    store = open_store("trueline")
    assert saved_figures(store, run_id) == fewer
    assert [artifact.path for artifact in store.client.list_artifacts(run_id, "people")] == [
        "people/figures.json",
        "people/votes.csv",
    ]
    assert "ann" not in Path(store.client.download_artifacts(run_id, "people/votes.csv")).read_text().split("\n", 1)[1]
    metrics = store.client.get_run(run_id).data.metrics
    assert (metrics["people/votes"], metrics["people/annotators"]) == (1, 1)
    assert math.isnan(metrics["people/alpha"])  # not the first reading's


def test_a_run_that_nobody_was_asked_about_has_no_figures(params):
    assert saved_figures(*run_of_the_evaluation()) is None


def test_a_server_that_is_away_is_named(params, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"MLflow at http://127\.0\.0\.1:1 cannot be used"):
        save_votes(params, evaluation().key, FIGURES, VOTES)
