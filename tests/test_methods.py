"""The table of methods: a person who adds a row learns what else a method needs."""

import re
import shutil
from pathlib import Path
from typing import cast, get_args

import pytest

from flows.settings import configure
from tasks.common.errors import InputError
from tasks.methods import METHODS, STAGES, Method, MethodName, stages_behind
from tasks.settings.params import Methods, load_params
from tests.conftest import ROOT


def test_every_method_has_a_name_a_row_and_settings() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    assert set(STAGES) == set(Methods.model_fields) == {method.stage for method in METHODS.values()}
    assert all(METHODS[stage].stage == stage for stage in STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_a_module_and_a_room(name: str) -> None:
    assert (ROOT / f"tasks/{name}.py").is_file()
    assert (ROOT / f"tasks/learning/{name}").is_dir()


def test_what_a_policy_follows_from() -> None:
    assert stages_behind("dpo") == ("sft", "dpo")
    assert stages_behind("ppo") == ("sft", "reward", "ppo")
    assert METHODS["dpo"].made_from == "the SFT model"
    assert METHODS["ppo"].made_from == "the SFT model and the reward model"


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The project's settings in a working folder, where align.method: dpo is a preset over PPO."""
    row = METHODS["ppo"]._replace(title="PPO by k3", preset={"ppo.kl_estimator": "k3", "ppo.kl_horizon": 7})
    monkeypatch.setitem(cast("dict[str, Method]", METHODS), "dpo", row)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path / "params.yaml"


def test_the_name_of_a_preset_brings_its_stage_and_its_settings(preset: Path) -> None:
    configure(["align.method=dpo"])
    params = load_params()
    assert (params.align.stage, params.ppo.kl_estimator, params.ppo.kl_horizon) == ("ppo", "k3", 7)
    assert stages_behind("dpo") == ("sft", "reward", "ppo")


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("  stage: dpo", "align.stage is dpo, but align.method ppo means ppo: trueline configure align.method=ppo"),
        ("  method: dpo", "ppo.kl_estimator is k1, but align.method dpo means k3: trueline configure align.method=dpo"),
    ],
)
def test_a_method_that_is_not_what_its_name_says_is_refused(preset: Path, written: str, sentence: str) -> None:
    name = written.partition(":")[0]
    preset.write_text(re.sub(rf"(?m)^{name}: ppo$", written, preset.read_text()))
    with pytest.raises(InputError, match=re.escape(sentence)):
        load_params()


@pytest.mark.parametrize(
    ("name", "estimator", "aggregation", "kl_estimator"),
    [
        ("grpo", "grpo", "sequence", "k3"),
        ("rloo", "rloo", "token", "k1"),
        ("reinforce", "reinforce_plus_plus", "token", "k1"),
    ],
)
def test_the_presets_over_ppo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, estimator: str, aggregation: str, kl_estimator: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    configure(["ppo.responses_per_prompt=8", f"align.method={name}"])
    params = load_params()
    assert params.align.stage == "ppo"
    found = (params.ppo.estimator, params.ppo.aggregation, params.ppo.kl_estimator, params.ppo.critic_warmup)
    assert found == (estimator, aggregation, kl_estimator, 0)
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace(f"  kl_estimator: {kl_estimator}", "  kl_estimator: k2"))
    with pytest.raises(InputError, match=f"ppo.kl_estimator is k2, but align.method {name} means {kl_estimator}"):
        load_params()
