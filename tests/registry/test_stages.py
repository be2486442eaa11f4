"""What tasks/registry/stages.py takes from DVC's internals must hold in the DVC that is installed."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tasks.errors import InputError
from tasks.registry import stages
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


def test_what_a_stage_follows_from_is_told_in_the_words_of_params_yaml(repository):
    earlier = stages.stage_origin("sft")
    assert earlier is not None
    rate = earlier.settings["sft.learning_rate"]
    change_params(sft={"learning_rate": 0.5})
    Path("data/validate/demonstrations.jsonl").write_text("other rows")
    now = stages.stage_origin("sft")
    assert now is not None
    said = f"sft.learning_rate was {rate} and is 0.5; data/validate has changed"
    assert now.differences(earlier) == said


def test_outside_a_repository_there_is_no_key_and_nothing_to_restore(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert current_key("sft") is None
    assert stages.stage_origin("sft") is None
    assert stages.lock_key("sft") is None
    assert stages.current_hash("sft", Path("models/sft")) is None
    stages.restore_outputs("sft")
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


def test_the_plan_is_the_order_in_which_dvc_runs(repository):
    said = dvc("repro", "--dry", "--force", cwd=repository).stdout
    order = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
    assert stages.plan() == order
    assert set(order) == set(STAGES)


def test_a_plan_outside_a_repository_says_where_to_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not the root of a DVC repository"):
        stages.plan()


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
    assert stages.changed_stages(STAGES) == []
    Path("models/reward/content.txt").write_text("other")
    assert stages.changed_stages(STAGES) == ["reward", "align", "evaluate"]


def test_unfinished_stages_are_those_that_a_run_brings_up_to_date(repository):
    assert stages.unfinished_stages() == []
    shutil.rmtree("models/reward")
    after = stages.unfinished_stages()
    assert after[0] == "reward"
    assert {"reward", "align", "evaluate", "gate"} <= set(after)
    assert not {"prepare", "base", "validate", "sft"} & set(after)
    settings = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"seed: \d+", "seed: 88", settings))
    assert stages.unfinished_stages() == stages.plan()


def test_the_cache_is_where_the_settings_of_dvc_say(repository, tmp_path):
    assert stages.places().cache.is_relative_to(Path(".dvc/cache").absolute())
    assert {Path("models/base"), Path("models/ppo"), Path("metrics/gate.json")} <= set(stages.places().outputs)
    assert stages.needs_git()
    dvc("cache", "dir", "--local", str(tmp_path / "other"), cwd=repository)
    dvc("config", "--local", "core.no_scm", "true", cwd=repository)
    assert stages.places().cache.is_relative_to(tmp_path / "other")
    assert not stages.needs_git()


def test_a_failing_stage_leaves_every_earlier_output_as_it_was(repository):
    watched = [Path("models/sft/content.txt"), Path("metrics/sft.json"), Path("curves/sft.csv"), Path("dvc.lock")]
    before = [path.read_bytes() for path in watched]
    settings = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"(sft:\n  epochs: )\d+", r"\g<1>99", settings))
    Path("fail").write_text("sft")
    failed = dvc("repro", "sft", cwd=repository, check=False)
    assert failed.returncode == 255
    assert "sft: the input is bad: mend it" in failed.stderr
    assert [path.read_bytes() for path in watched] == before
    assert json.loads(dvc("status", "--json", cwd=repository).stdout) == {
        "sft": [{"changed deps": {"params.yaml": {"sft": "modified"}}}]
    }


def test_a_failing_algorithm_is_restored_under_the_stage_that_runs_it(repository):
    Path("fail").write_text("ppo")
    Path("figures.json").write_text(Path("figures.json").read_text() + " ")
    before = Path("models/ppo/content.txt").read_bytes()
    assert dvc("repro", "--single-item", "align", cwd=repository, check=False).returncode == 255
    assert Path("models/ppo/content.txt").read_bytes() == before


def test_by_hand_only_what_is_missing_is_restored(repository):
    Path("models/sft/content.txt").write_text("made by hand")
    Path("metrics/sft.json").unlink()
    stages.restore_outputs("sft")
    assert Path("models/sft/content.txt").read_text() == "made by hand"
    assert json.loads(Path("metrics/sft.json").read_text()) == {"loss": 0.5}


def test_what_the_cache_lacks_is_said_and_left_alone(repository, caplog):
    shutil.rmtree(".dvc/cache")
    shutil.rmtree("models/sft")
    stages.restore_outputs("sft")
    assert "models/sft is not in DVC's cache" in caplog.text
    assert not Path("models/sft").exists()
    assert Path("metrics/sft.json").exists()


def test_a_cached_folder_is_written_wherever_it_is_wanted(repository):
    md5 = stages.output_hashes("sft")["models/sft"]
    expected = Path("models/sft/content.txt").read_bytes()
    shutil.rmtree("models/sft")
    Path("elsewhere").mkdir()
    Path("elsewhere/old").touch()
    stages.materialise(md5, Path("elsewhere"))
    assert [path.name for path in Path("elsewhere").iterdir()] == ["content.txt"]
    assert Path("elsewhere/content.txt").read_bytes() == expected
    stages.materialise(stages.output_hashes("sft")["metrics/sft.json"], Path("figures"))
    assert json.loads(Path("figures").read_text()) == {"loss": 0.5}


@pytest.mark.parametrize("lost", ["everything", "one file"])
def test_a_folder_that_is_not_all_in_the_cache_is_refused(repository, lost):
    md5 = stages.output_hashes("sft")["models/sft"]
    for path in Path(".dvc/cache").rglob("*"):
        if path.is_file() and (lost == "everything" or path.suffix != ".dir"):
            path.chmod(0o644)
            path.unlink()
    with pytest.raises(InputError, match=r"DVC's cache lacks .*: run dvc fetch"):
        stages.materialise(md5, Path("elsewhere"))
    assert not Path("elsewhere").exists()


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
