"""What the benchmarks count and compare: the arithmetic by hand, the warm-up left out, the same work for all."""

import time

import pytest

from benchmarks.jobs import WARM_UP, Clock, Job
from benchmarks.rounds import KINDS, OURS, variants
from benchmarks.workloads import SIZES, Size, Texts, training_operations
from tasks.data.tokens import Encoded


def test_operations_by_hand():
    size = Size(vocabulary=10, hidden=4, layers=2, heads=1, inner=8)
    # weights of a layer: 4 * 4^2 + 3 * 4 * 8 = 160. A row of 3 tokens, 2 of them the answer's:
    # 2 * (2 * 160) * 3 + attention 2 * 4 * 4 * (3 * 4 / 2) + logits 2 * 4 * 10 * 2 = 1920 + 192 + 160 = 2272; times 3
    assert training_operations(size, [Encoded([5], [6, 1])]) == 3 * 2272


def test_texts_are_the_same_again_and_of_mixed_length():
    first, again = (Texts(SIZES["S"], seed=1).rows(200) for _ in range(2))
    assert first == again
    lengths = [row.length for row in first]
    assert 80 < sum(lengths) / len(lengths) < 120
    assert max(lengths) > 3 * min(lengths)
    assert max(lengths) <= 512


def test_the_warm_up_does_not_count():
    clock = Clock()
    with clock.before_the_steps():
        time.sleep(0.04)
    for step in range(WARM_UP + 2):
        time.sleep(0.2 if step < WARM_UP else 0.02)
        clock.mark(float(step))
    found = clock.measured()
    assert found.figures == [0, 1, 2, 3]
    assert found.wall == pytest.approx(
        0.04 / 2 + 0.04, abs=0.03
    )  # half of the steps count, so half of what came before


def test_every_kind_has_ours_and_another():
    for kind in KINDS:
        names = list(variants(kind))
        assert names[-1] == OURS
        assert len(names) > 1


def test_a_job_has_rows_for_its_warm_up(tmp_path):
    job = Job("sft", "S", tmp_path, tmp_path, "fp32", steps=20)
    assert job.rows == (20 + WARM_UP) * 8
