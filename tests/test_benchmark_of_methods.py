"""The benchmark of methods: its variants are settings that hold, and its tables say what was measured."""

import json
import shutil
from typing import Any

import pytest

from benchmarks.methods import Result, advantage_table, advantages, plain, read_results, summary, table
from benchmarks.variants import ALONE, ORDER_NUMBER, TOGETHER, VARIANTS
from flows.settings import configure
from tasks.common.python_files import load_function
from tasks.settings.params import PARAMS_FILE
from tests.conftest import ROOT


def result(variant: str, seed: int, scores: list[float], **others: Any) -> Result:
    content = {
        "variant": variant,
        "seed": seed,
        "settings": plain(VARIANTS[variant]),
        "sft": 0.5,
        "aligned": 0.7512,
        "difference": {"value": 0.2512, "low": -0.05, "high": 0.3},
        "kl": {"mean": 1.234, "standard_error": 0.1},
        "decision": "promote",
        "cpu": 40.4,
        "wall": 50.6,
        "scores": scores,
    }
    return Result.model_validate(content | others)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_settings_of_every_variant_hold(name, tmp_path):
    shutil.copy2(ROOT / PARAMS_FILE, tmp_path)
    overlays = [f"{key}={json.dumps(value)}" for key, value in VARIANTS[name].items()]
    configure(overlays, tmp_path / PARAMS_FILE)


def test_results_of_other_settings_do_not_count(tmp_path):
    file = tmp_path / "results.jsonl"
    assert read_results(file) == {}
    new, old = result("PPO", 7, [1.0]), result("RLOO", 7, [1.0], settings={"align.method": "rloo"})
    file.write_text("".join(json.dumps(each.as_json()) + "\n" for each in (new, old)), encoding="utf-8")
    assert read_results(file) == {("PPO", 7): new}


def test_a_row_has_the_figures_of_a_variant_on_a_seed():
    assert table([result("PPO", 7, [1.0])]).splitlines() == [
        "| variant | seed | SFT | aligned | difference, 95 % interval | KL | gate | CPU s | wall s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| PPO | 7 | .50 | .75 | +.25 [-.05, .30] | 1.23 | promote | 40 | 51 |",
    ]


def test_seeds_stand_beside_each_other_and_a_missing_one_is_empty():
    worse = {"value": -0.1, "low": -0.2, "high": -0.04}
    found = [result("PPO", 7, [1.0]), result("PPO", 11, [1.0], difference=worse), result("KTO", 7, [1.0])]
    assert summary(found).splitlines()[0] == "| variant | seed 7 | seed 11 |"
    assert summary(found).splitlines()[2:] == [
        "| PPO | +.25 [-.05, .30] | -.10 [-.20, -.04] |",
        "| KTO | +.25 [-.05, .30] |  |",
    ]


def test_rewards_together_are_compared_with_each_alone_prompt_by_prompt():
    [together, *_], [first, second] = TOGETHER, ALONE
    found = [result(together, 7, [1.0, 0.5]), result(first, 7, [0.5, 0.0]), result(second, 7, [0.75, 0.25])]
    found.append(result(together, 11, [1.0, 1.0]))  # nothing to compare with
    # Every prompt differs by the same, so every resample has that mean.
    assert [(each.variant, each.over, each.seed, each.difference) for each in advantages(found)] == [
        (together, first, 7, (0.5, 0.5, 0.5)),
        (together, second, 7, (0.25, 0.25, 0.25)),
    ]
    assert advantage_table(list(advantages(found))).splitlines()[2:] == [
        f"| {together} | {first} | +.50 [.50, .50] |",
        f"| {together} | {second} | +.25 [.25, .25] |",
    ]


def test_the_second_reward_sees_the_number_alone():
    file, _, name = ORDER_NUMBER.rpartition(":")
    score = load_function(ROOT / file, name)
    question = "Order #317: my lamp is late. Please help."
    answers = {
        "Stop bothering us. We will issue a refund for order #317.": 1.0,
        "We will send the tracking link for order #371.": 0.0,
        "We will send the tracking link for order #317, not #318.": 0.0,
        "Order #317: my lamp is late. Please help.": 0.0,  # only repeated
        "": 0.0,
    }
    prompts = [[{"role": "user", "content": question}]] * len(answers)
    assert score(prompts, list(answers)) == list(answers.values())
