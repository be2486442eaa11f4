"""Every policy loss, aggregation and combination of rewards: micro-batches and processes change rounding alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.learning.ppo_variants import VARIANTS, trained
from tests.learning.ranks import run_ranks


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    assert expected["penalty"] > 0
    assert expected["figures"]["clip_fraction"] > 0  # or nothing of the losses' difference would be seen
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_micro_batches_change_nothing_but_rounding(tokens: int, variant: str):
    assert_alike(trained(VARIANTS[variant], tokens), trained(VARIANTS[variant], 1000))


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path):
    file = tmp_path / "variants.json"
    run_ranks("ddp", "tests.learning.ppo_variants", str(file), count=2)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert set(found) == set(VARIANTS)
    for name, variant in VARIANTS.items():
        assert_alike(found[name], trained(variant))
