"""What tasks/registry/dvc_outputs/stages.py takes from DVC's internals must hold in the DVC that is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.registry.dvc_outputs import graph, stages
from tests.registry.conftest import STAGES, change_params, dvc


def current_key(stage):
    ingredients = stages.current_ingredients(stage)
    return ingredients and ingredients.key()


@pytest.mark.parametrize("stage", STAGES)
def test_the_key_before_the_run_is_the_key_in_the_lock(repository, stage):
    assert current_key(stage) == stages.lock_key(stage)
    assert re.fullmatch("[0-9a-f]{64}", stages.lock_key(stage) or "")


def test_the_key_follows_command_dependencies_and_parameters(repository):
    before = stages.lock_key("sft")
    settings = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"seed: \d+", "seed: 88", settings))
    other_seed = current_key("sft")
    Path("params.yaml").write_text(settings)
    Path("data/validate/demonstrations.jsonl").write_text("other rows")
    other_data = current_key("sft")
    assert len({before, other_seed, other_data}) == 3
    assert stages.lock_key("sft") == before


def test_the_key_of_a_templated_stage_is_the_chosen_algorithms(repository):
    ingredients = stages.locked_ingredients("align")
    assert ingredients is not None
    assert ingredients.command == "python make.py ppo"
    assert set(ingredients.params["params.yaml"]) == {"seed", "align", "ppo"}
    assert current_key("ppo") == current_key("align")


def test_what_a_stage_follows_from_is_given_in_the_words_of_params_yaml(repository):
    earlier = stages.stage_fingerprint("sft")
    assert earlier is not None
    rate = earlier.settings["sft.learning_rate"]
    change_params(sft={"learning_rate": 0.5})
    Path("data/validate/demonstrations.jsonl").write_text("other rows")
    now = stages.stage_fingerprint("sft")
    assert now is not None
    message = f"sft.learning_rate was {rate} and is 0.5; data/validate has changed"
    assert now.differences(earlier) == message


def test_outside_a_repository_there_is_no_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert current_key("sft") is None
    assert stages.stage_fingerprint("sft") is None
    assert stages.lock_key("sft") is None
    assert stages.current_hash("sft", Path("models/sft")) is None
    assert list(tmp_path.iterdir()) == []


def test_a_missing_dependency_names_the_file_and_the_cure(repository):
    shutil.rmtree("models/base")
    with pytest.raises(InputError, match=r"models/base does not exist: run the stage that writes it"):
        current_key("sft")


def test_a_stage_that_does_not_exist_is_named(repository):
    with pytest.raises(InputError, match="polish"):
        current_key("polish")


def test_a_damaged_lock_is_named(repository):
    Path("dvc.lock").write_text("schema: [")
    with pytest.raises(InputError, match=r"dvc\.lock is damaged: restore it from git"):
        stages.lock_key("sft")


def test_a_lock_that_dvc_is_writing_is_read_when_it_is_whole(repository, monkeypatch):
    """Of half a file `trueline status` reported that it is damaged, or DVC's "validation failed"."""
    expected, plan, whole = stages.lock_key("sft"), graph.plan(), Path("dvc.lock").read_text()
    for read in (lambda: stages.lock_key("sft"), graph.plan):
        Path("dvc.lock").write_text(whole[: len(whole) // 2] + "\n  half: [")
        monkeypatch.setattr("time.sleep", lambda _seconds: Path("dvc.lock").write_text(whole))
        graph._plan.cache_clear()
        assert read() in (expected, plan)


def test_the_plan_is_the_order_in_which_dvc_runs(repository):
    message = dvc("repro", "--dry", "--force", cwd=repository).stdout
    order = [line.split("'")[1] for line in message.splitlines() if line.startswith("Running stage")]
    assert graph.plan() == order
    assert set(order) == set(STAGES)


def test_a_plan_outside_a_repository_says_where_to_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not the root of a DVC repository"):
        graph.plan()


def test_hashes_of_outputs_are_those_of_the_lock_and_of_the_files(repository):
    assert stages.output_hashes("sft")["models/sft"].endswith(".dir")
    assert set(stages.output_hashes("ppo")) == {
        "models/ppo",
        "metrics/ppo.json",
        "curves/ppo.csv",
        "reports/ppo/answers.jsonl",
    }
    assert stages.output_hash("sft", Path("models/other")) is None
    assert stages.current_hash("sft", Path("models/sft")) == stages.output_hash("sft", Path("models/sft"))
    Path("models/sft/content.txt").write_text("other")
    assert stages.current_hash("sft", Path("models/sft")) != stages.output_hash("sft", Path("models/sft"))


def test_changed_stages_are_those_that_dvc_calls_changed(repository):
    assert graph.graph_status().changed(STAGES) == []
    Path("models/reward/content.txt").write_text("other")
    assert graph.graph_status().changed(STAGES) == ["reward", "reward_check", "align", "evaluate"]


def test_a_fresh_clone_has_changed_no_stage(repository, tmp_path, monkeypatch):
    subprocess.run(["git", "clone", "-q", str(repository), str(tmp_path / "clone")], check=True)
    monkeypatch.chdir(tmp_path / "clone")
    found = graph.graph_status()
    assert found.stale == list(found.changes)
    assert found.changed(STAGES) == []


def test_unfinished_stages_are_those_that_a_run_brings_up_to_date(repository):
    assert graph.graph_status().unfinished == []
    shutil.rmtree("models/reward")
    after = graph.graph_status().unfinished
    assert after[0] == "reward"
    assert {"reward", "align", "evaluate", "gate"} <= set(after)
    assert not {"prepare", "base", "validate", "sft"} & set(after)
    settings = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"seed: \d+", "seed: 88", settings))
    assert graph.graph_status().unfinished == graph.plan()


def test_the_cache_is_where_the_settings_of_dvc_say(repository, tmp_path):
    assert graph.places().cache.is_relative_to(Path(".dvc/cache").absolute())
    assert {Path("models/base"), Path("models/ppo"), Path("metrics/gate.json")} <= set(graph.places().outputs)
    assert stages.needs_git()
    dvc("cache", "dir", "--local", str(tmp_path / "other"), cwd=repository)
    dvc("config", "--local", "core.no_scm", "true", cwd=repository)
    assert graph.places().cache.is_relative_to(tmp_path / "other")
    assert not stages.needs_git()


def test_an_experiment_in_a_temporary_copy_works_on_that_copy(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert current_key("sft") == stages.lock_key("sft")


def test_a_small_float_in_the_lock_file_is_a_number(tmp_path, monkeypatch):
    """DVC writes 5e-05, which YAML 1.1 takes for a text: the key would be another than the one before the run."""
    monkeypatch.chdir(tmp_path)
    Path("dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  ppo:\n    cmd: x\n    params:\n      params.yaml:\n        rate: 5e-05\n"
        "  align:\n    cmd: x\n    params:\n      params.yaml:\n        rate: 5e-05\n"
    )
    found = stages.locked_ingredients("ppo")
    assert found is not None
    assert found.params == {"params.yaml": {"rate": 0.00005}}
