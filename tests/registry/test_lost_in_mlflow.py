"""What somebody deletes or damages in MLflow costs one sentence with the cure, or nothing; the champion stays."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from tasks.common.errors import InputError
from tasks.registry.lineage import sync
from tasks.registry.mlflow_runs.relocation import relocate
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import champion
from tasks.registry.promotion.decisions import past_decisions
from tasks.registry.promotion.versions import read_policy_version
from tasks.settings.params import load_params
from tests.registry.conftest import aliases

POLICY, REWARD = "trueline-policy", "trueline-reward"
AGAIN = "in MLflow: delete the whole registered model {} there, and run trueline sync, which makes its versions again$"


def client():
    return open_store("trueline").client


def version(name=POLICY, alias="champion"):
    return client().get_model_version_by_alias(name, alias)


def folder() -> Path:
    location = client().get_logged_model(version().tags["model_id"]).artifact_location
    return Path(location.removeprefix("file://"))


def delete_policy():
    client().delete_model_version(POLICY, version().version)


def delete_reward():
    client().delete_model_version(REWARD, version(REWARD).version)


def delete_logged_model():
    client().delete_logged_model(version().tags["model_id"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "name", "what"),
    [
        (delete_policy, POLICY, "version 2 has been deleted "),
        (delete_reward, REWARD, "version 2 has been deleted "),
        (delete_logged_model, POLICY, "version 2 has lost its logged model "),
    ],
)
def test_the_cure_is_named_and_works(own, damage, name, what):
    params = load_params()
    champion.promote(params)
    before, versions = aliases(), {each: set(numbers(each)) for each in (POLICY, REWARD)}
    damage()
    left = {each: set(numbers(each)) for each in (POLICY, REWARD)}
    with pytest.raises(InputError, match=f"^{name} {what}{AGAIN.format(name)}"):
        champion.promote(params)
    assert {each: set(numbers(each)) for each in (POLICY, REWARD)} == left
    assert [decision["action"] for decision in past_decisions()] == ["promote", "promote"]

    client().delete_registered_model(name)
    sync.sync(params)
    assert aliases() == before
    assert {each: set(numbers(each)) for each in (POLICY, REWARD)} == versions
    assert champion.rollback(params, "it flatters")["champion"] == 1


def numbers(name):
    return [int(found.version) for found in client().search_model_versions(f"name = '{name}'")]


@pytest.mark.slow
def test_a_folder_of_artifacts_that_cannot_be_made_is_named(own):
    champion.register(load_params())
    before = aliases()
    relocate(f"sqlite:///{own / 'mlflow.db'}", own.as_uri(), "file:///proc/away")
    _artifact_repos_cache.clear()
    with pytest.raises(
        InputError,
        match=r"^MLflow keeps trueline-policy version 2 in /proc/away/mlruns/.* gone and cannot be made",
    ):
        champion.promote(load_params())
    assert aliases() == before


def test_a_record_that_is_cut_is_named():
    cut: Any = SimpleNamespace(name=POLICY, version="2", tags={"model_record": '{"half'})
    with pytest.raises(InputError, match=f"^{POLICY} version 2 has a damaged tag model_record {AGAIN.format(POLICY)}"):
        read_policy_version(cut)


@pytest.mark.slow
def test_a_model_that_mlflow_cannot_read_is_written_again(own):
    params = load_params()
    champion.promote(params)
    for file, damage in {"MLmodel": lambda path: path.write_text("flavors:"), "conda.yaml": Path.unlink}.items():
        whole = (folder() / file).read_bytes()
        damage(folder() / file)
        champion.register(params)
        assert len((folder() / file).read_bytes()) == len(whole)
