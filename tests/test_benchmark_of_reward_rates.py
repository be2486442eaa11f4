"""The benchmark of reward models' rates: it trains as the stage does, and its tables say what was measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import reward_rates
from benchmarks.reward_rates import Job, Result, ratios, read_pairs, read_results, run, table

PAIRS = reward_rates.PAIRS["gsm8k"]


def result(fold: int, losses: list[float], right: list[float], **others: Any) -> Result:
    content = {"data": "gsm8k", "weights": "LoRA", "rate": 2e-4, "fold": fold, "pairs": PAIRS, "cpu": 10.4}
    return Result.model_validate(content | {"losses": losses, "right": right} | others)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"prompt": f"w{n % 9} w{n // 9}", "chosen": "w1 w2", "rejected": "w3"} for n in range(81)]
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    return tmp_path


def test_pairs_have_a_prompt_each_and_are_of_the_training_split(data: Path, tiny_model: Path):
    pairs = read_pairs("gsm8k", tiny_model, data)
    assert len(pairs.encoded) == len(set(pairs.rows.conversations)) == PAIRS
    assert [len(each) for each in pairs.rows.features] == [PAIRS, PAIRS]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["LoRA", "full"])
def test_a_run_begins_at_the_fit_and_moves_by_its_rate(data: Path, tiny_model: Path, weights: str):
    pairs = read_pairs("gsm8k", tiny_model, data)
    found = run(Job("gsm8k", weights, 1e-4, fold=1), pairs, tiny_model)
    assert (found.pairs, found.right[0]) == (PAIRS, 1.0)
    assert found.losses[0] < 0.01  # a coin's is log 2
    assert all(loss != pytest.approx(found.losses[0], rel=0.01) for loss in found.losses[1:])
    still = run(Job("gsm8k", weights, 0.0, fold=1), pairs, tiny_model)
    assert still.losses == pytest.approx([found.losses[0]] * 3)


@pytest.mark.slow
def test_a_fold_is_measured_that_was_not_learned_from(data: Path, tiny_model: Path):
    pairs = read_pairs("gsm8k", tiny_model, data)
    even = torch.arange(PAIRS) % 2 == 0
    for side in pairs.rows.features:
        side[even] = torch.randn(int(even.sum()), side.shape[1])  # so what is fitted on them is noise
    sound, noise = (run(Job("gsm8k", "full", 0.0, fold), pairs, tiny_model).losses[0] for fold in (0, 1))
    assert sound < 0.5 < noise


def test_results_of_another_number_of_pairs_do_not_count(tmp_path: Path):
    file = tmp_path / "results.jsonl"
    assert read_results(file) == {}
    new, old = result(0, [0.6], [0.7]), result(1, [0.6], [0.7], pairs=PAIRS + 1)
    file.write_text("".join(json.dumps(each.as_json()) + "\n" for each in (new, old)), encoding="utf-8")
    assert read_results(file) == {Job("gsm8k", "LoRA", 2e-4, 0): new}


def test_tables_have_means_over_folds_and_leave_out_what_is_incomplete():
    found = [
        result(0, [0.6, 0.5, 0.3], [0.5, 0.75, 0.75]),
        result(1, [0.6, 0.4, 0.3], [0.5, 0.75, 1.0]),
        result(0, [0.6, 0.5, 0.3], [0.5, 0.75, 0.75], rate=8e-4),
        result(0, [0.5, 0.5, 1.0], [0.5, 0.5, 0.5], data="sentiment"),
        result(1, [0.5, 0.5, 1.0], [0.5, 0.5, 0.5], data="sentiment"),
    ]
    assert table(found).splitlines()[2:] == [
        "| gsm8k | LoRA | 0.0002 | 0.600, .50 | 0.450, .75 | 0.300, .88 | 21 |",
        "| sentiment | LoRA | 0.0002 | 0.500, .50 | 0.500, .50 | 1.000, .50 | 21 |",
    ]
    # Geometric means of .75 and 1, and of .5 and 2.
    assert ratios(found).splitlines()[2:] == ["| LoRA | 0.0002 | 2 | 0.866 | 1.000 |"]
