"""Serving from a real registry: versions, weights, and the figures that come back into MLflow and the report."""

import json
import shutil
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.stages import output_hash
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import champion
from tasks.registry.serving.figures import RUNS_TAG, ServingRun, served
from tasks.registry.serving.versions import FOLDER, AliasReader, ServedVersion, weights
from tasks.settings.params import load_params
from tests.registry.conftest import dvc, run_again
from tests.serve_campaign import MOST_SECONDS, campaign

FIGURES = {
    "requests": 40.0,
    "errors": 1.0,
    "thumbs_up": 3.0,
    "thumbs_down": 2.0,
    "seconds_p50": 0.25,
    "refusals": 0.125,
}


def led_to(alias, reader=None):
    found = (reader or AliasReader(load_params())).read(alias)
    assert found
    return found


def test_an_alias_leads_to_a_version_and_its_weights(challenged):
    reader = AliasReader(load_params())
    first = led_to("champion", reader)

    assert first == ServedVersion("trueline-policy", 1, first.md5)
    assert first.name == "trueline-policy/1"
    assert reader.read("nobody") is None
    folder = weights(first.md5, first.name)
    assert folder == FOLDER / first.md5
    (folder / "content.txt").write_text("damaged")
    assert (weights(first.md5, first.name) / "content.txt").read_text().startswith("ppo 0")
    champion.promote(load_params())
    assert led_to("champion", reader).version == 2


def test_weights_come_from_the_remote_where_the_cache_lacks_them(challenged, tmp_path):
    md5 = output_hash("align", Path("models/ppo")) or ""
    dvc("remote", "add", "-d", "shared", str(tmp_path / "remote"), cwd=challenged)
    dvc("push", "-q", "align", cwd=challenged)
    shutil.rmtree(".dvc/cache")
    shutil.rmtree("models")

    assert (weights(md5, "version 2") / "content.txt").read_text().startswith("ppo 2")
    shutil.rmtree(".dvc/cache")
    shutil.rmtree(FOLDER)
    shutil.rmtree(tmp_path / "remote")
    with pytest.raises(InputError, match="cannot be asked"):
        weights(md5, "version 2")


def test_a_registry_that_is_away_is_asked_anew(challenged):
    reader = AliasReader(load_params())
    first = led_to("champion", reader)
    moved = Path("mlflow.db").rename("away.db")
    Path("mlflow.db").write_text("no database")
    with pytest.raises(InputError):
        AliasReader(load_params()).read("champion")
    assert AliasReader(load_params()).last("champion") == first  # of an earlier process
    assert AliasReader(load_params()).last("challenger") is None
    moved.replace("mlflow.db")
    assert led_to("champion", reader).version == 1


def test_figures_are_a_run_of_the_version(challenged):
    params = load_params()
    first, store = led_to("champion"), open_store("trueline")
    run = ServingRun(params, first, "champion")
    run.write({"requests": 1.0, "errors": 0.0, "thumbs_up": 0.0, "thumbs_down": 0.0})
    run.write(FIGURES, is_end=True)
    candidate = ServedVersion("trueline-policy", 2, "f" * 32)

    [found] = served(store, {"Opponent": first.md5, "Candidate": candidate.md5})
    assert (found.version, found.role, found.figures) == ("Opponent", "champion", FIGURES)
    version = store.client.get_model_version("trueline-policy", "1")
    assert json.loads(version.tags[RUNS_TAG]) == [found.run_id]
    saved = store.client.get_run(found.run_id)
    assert (saved.info.status, saved.data.tags["version"]) == ("FINISHED", "1")
    history = store.client.get_metric_history(found.run_id, "serving/requests")
    assert [(each.step, each.value) for each in history] == [(1, 1.0), (2, 40.0)]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a server is started, and the champion moves twice
def test_a_server_follows_promotions_and_no_request_fails(real, monkeypatch):
    run_again(content=2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    answers, moves = campaign(real, 60, 4, 8, "--poll", "0.5")

    assert {answer.status for answer in answers} == {200}
    assert {answer.model for answer in answers} == {"trueline-policy/1", "trueline-policy/2"}
    assert max(each.seconds for each in moves) < MOST_SECONDS
    found = served(open_store("trueline"), {str(n): md5 for n, md5 in versions().items()})
    assert {each.version for each in found} == {"1", "2"}
    assert sum(each.figures["requests"] for each in found) == len(answers)


def versions():
    found = open_store("trueline").client.search_model_versions("name = 'trueline-policy'")
    return {int(version.version): version.tags["md5"] for version in found}
