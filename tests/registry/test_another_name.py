"""Another registry.policy, as for another task, starts anew: a decision is one on the registered model it names."""

import json
import shutil
from pathlib import Path

import pytest

from flows.inspection.status import registry
from tasks.common.errors import InputError
from tasks.registry.lineage import explain, sync, trace
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import champion
from tasks.registry.promotion.opponent import refresh_opponent
from tasks.settings.params import Params, load_params
from tests.registry.conftest import change_params, run_again

FIRST, OTHER = "trueline-policy", "summaries"


def name_model(name: str) -> Params:
    change_params(registry={"policy": name})
    return load_params()


def versions_by_alias(name: str) -> dict[str, int]:
    found = open_store("trueline").client.get_registered_model(name).aliases
    return {alias: int(version) for alias, version in found.items()}


def opponent() -> str:
    return str(json.loads(Path("opponent.json").read_text())["name"])


def test_a_new_name_has_no_champion_and_no_past(challenged: Path) -> None:
    params = name_model(OTHER)
    assert registry(params) == {"champion": None, "challenger": None, "awaiting": [], "error": None}
    assert refresh_opponent(params)
    assert opponent() == "sft"
    sync.sync(params)
    assert not open_store("trueline").client.search_registered_models(f"name = '{OTHER}'")
    assert explain.history(params) == []
    with pytest.raises(InputError, match="there is no previous champion"):
        champion.rollback(params, "it insults people")
    with pytest.raises(InputError, match="summaries has no version yet"):
        trace.trace(params, "source", "rows.jsonl")
    assert refresh_opponent(name_model(FIRST))
    assert opponent() == "champion"


@pytest.mark.slow
def test_each_name_keeps_its_own_champion_and_what_people_said_of_it(challenged: Path, empty_database: Path) -> None:
    params = load_params()
    assert champion.promote(params)["champion"] == 2
    champion.rollback(params, "it insults people")
    assert "was rolled back" in champion.promote(params)["reasons"][0]

    params = name_model(OTHER)
    run_again()
    assert champion.promote(params)["champion"] == 1  # the same content: rolled back elsewhere, not here
    change_params(registry={"approval": True})
    run_again(content=3)
    assert champion.promote(load_params())["held"]
    assert registry(load_params())["awaiting"] == [2]
    assert [each["action"] for each in explain.why(params, "champion")["decisions"]] == ["promote"]

    assert versions_by_alias(FIRST) == {"champion": 1, "previous": 2, "challenger": 2}
    assert versions_by_alias(OTHER) == {"champion": 1, "challenger": 2}
    params = name_model(FIRST)
    assert [each["action"] for each in explain.history(params)] == ["promote", "promote", "rollback", "refuse"]
    assert registry(params)["awaiting"] == []

    shutil.copy(empty_database, "mlflow.db")
    shutil.rmtree("mlruns")
    for name, wanted in ((OTHER, {"champion": 1}), (FIRST, {"champion": 1, "previous": 2})):
        sync.sync(name_model(name))
        assert versions_by_alias(name) == wanted


def test_a_model_that_an_earlier_release_gave_another_s_decision_is_named(challenged: Path) -> None:
    client = open_store("trueline").client
    client.create_registered_model(OTHER)
    client.set_registered_model_tag(OTHER, "decision", explain.history(load_params())[0]["id"])
    with pytest.raises(InputError, match="has for another model: delete summaries in MLflow, or name another"):
        refresh_opponent(name_model(OTHER))
