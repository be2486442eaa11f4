"""What the benchmarks count and compare: the arithmetic by hand, the warm-up left out, the same work for all."""

import json
import math
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import benchmarks.scaling
from benchmarks import plain
from benchmarks.data import make_rows, run
from benchmarks.jobs import Clock, Job, Measured, described, forget_peak_memory, peak_memory
from benchmarks.ours import KL, pairs_of, rounds_of_prompts, settings_for
from benchmarks.plain import PlainPPO, padded
from benchmarks.report import cells, given, growth, sampled
from benchmarks.rounds import KINDS, OURS, answer, counted_items, interleaved, needed, summarise, variants
from benchmarks.scaling import scaling
from benchmarks.workloads import SIZES, Size, Texts, forward_operations, make_model
from tasks.learning.models.forward import pack_if_exact
from tasks.learning.ppo.trainer import PPOTrainer
from tests.tiny import tiny_models, tiny_policy, tiny_tokenizer

TINY_PROMPTS = [[4], [5, 6, 7, 8, 9, 10, 11], [12, 3], [7, 7, 7], [15, 3], [4, 5, 6, 3], [9, 3], [8, 13, 14]]


def make_job(kind: str = "sft", **options: Any) -> Job:
    return Job(kind, "XS", Path("unused"), Path("unused"), "fp32", **{"steps": 4, **options})


def test_operations_by_hand():
    size = Size(vocabulary=10, hidden=4, layers=2, heads=1, inner=8)
    # weights of a layer: 4 * 4^2 + 3 * 4 * 8 = 160. A row of 3 tokens, 2 of them the answer's:
    # 2 * (2 * 160) * 3 + attention 2 * 4 * 4 * (3 * 4 / 2) + logits 2 * 4 * 10 * 2 = 1920 + 192 + 160 = 2272
    assert forward_operations(size, 1, [2]) == 2272
    # Another answer of 1 token, behind the same prompt: 640 + 2 * 4 * 4 * (1 + 1) + 80 = 784
    assert forward_operations(size, 1, [2, 1]) == 2272 + 784
    assert forward_operations(size, 1, [2, 1], has_logits=False) == 2272 + 784 - 3 * 80


def test_a_step_is_three_forward_passes_and_that_of_dpo_a_fourth():
    once, headless = (
        forward_operations(SIZES["XS"], 5, [2, 3]),
        forward_operations(SIZES["XS"], 5, [2, 3], has_logits=False),
    )
    assert needed(make_job("sft"), 5, [2, 3]) == (10, 3 * once)
    assert needed(make_job("dpo"), 5, [2, 3]) == (10, 4 * once)
    assert needed(make_job("reward"), 5, [2, 3]) == (10, 3 * headless)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_what_is_counted_are_the_rows_of_all_steps_but_the_warm_up(kind):
    job = make_job(kind)
    items = counted_items(job)
    assert len(items) == 4 * 8
    assert all(len(answers) == (1 if kind == "sft" else 2) for _, answers in items)
    if kind == "dpo":
        lengths = [(len(pair.chosen.prompt), [len(row.completion) for row in pair]) for pair in pairs_of(job)]
        assert all(item in lengths for item in items)


def test_texts_are_the_same_again_and_of_mixed_length():
    first, again = (Texts(SIZES["S"], seed=1).rows(200) for _ in range(2))
    assert first == again
    lengths = [row.length for row in first]
    assert 80 < sum(lengths) / len(lengths) < 120
    assert max(lengths) > 3 * min(lengths)
    assert max(lengths) <= 512


def test_the_warm_up_does_not_count():
    clock = Clock(warm_up=2)
    with clock.before_the_steps():
        time.sleep(0.04)
    for step in range(4):
        time.sleep(0.2 if step < 2 else 0.02)
        clock.record(loss=float(step))
    found = clock.measured()
    assert [step["loss"] for step in found.figures] == [0, 1, 2, 3]
    assert found.wall == pytest.approx(
        0.04 / 2 + 0.04, abs=0.15
    )  # half of the steps count, so half of what came before


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the process, not the device")
def test_the_peak_of_memory_is_that_of_one_run():
    forget_peak_memory()
    before = peak_memory()
    torch.ones(100 * 2**18)  # 100 MiB
    assert peak_memory() > before + 90
    forget_peak_memory()
    assert peak_memory() < before + 50


def test_every_kind_has_ours_and_another():
    for kind in KINDS:
        names = list(variants(kind))
        assert names[-1] == OURS
        assert len(names) > 1


def test_a_job_has_rows_and_prompts_for_its_warm_up():
    assert make_job("sft", steps=20).rows == (20 + 2) * 8
    for kind, responses in (("ppo", 1), ("rloo", 2)):
        rounds = rounds_of_prompts(make_job(kind, steps=2, answers=6))
        assert [len(asked) for asked in rounds] == [6] * 3
        assert all(asked[place] == asked[place - place % responses] for asked in rounds for place in range(6))
        assert len({tuple(prompt) for asked in rounds for prompt in asked}) == 3 * 6 / responses


def test_plain_ppo_learns_from_the_same_answers_what_ours_learns():
    # A rate at which ratios leave 1 within the round, so that clipped losses are compared too.
    settings = settings_for(make_job("ppo", answers=8, longest=6))
    settings = settings.model_copy(
        update={"ppo": settings.ppo.model_copy(update={"learning_rate": 3e-3, "critic_learning_rate": 3e-3})}
    )
    models = tiny_models()
    for model in models[1:]:
        assert isinstance(model, PreTrainedModel)
        pack_if_exact(model)
    trainer, theirs = PPOTrainer(models, settings), PlainPPO(tiny_models(), settings.ppo, "fp32")
    answered = trainer.sample(TINY_PROMPTS, seed=1)
    assert len({len(response.row.completion) for response in answered}) > 2
    batch = padded([response.row for response in answered], torch.device("cpu"))
    rollouts, found = trainer.score(answered, KL), theirs.score(batch)
    assert found.scores.tolist() == pytest.approx(rollouts.scores.tolist(), abs=1e-5)
    for field in ("log_probs", "entropies", "values", "advantages", "returns"):
        flat = getattr(found, field)[batch.mask].tolist()
        assert flat == pytest.approx(getattr(rollouts, field)[rollouts.mask].tolist(), abs=1e-5)
    steps, their_steps = (
        list(trainer.steps(rollouts, 1, "")),
        list(theirs.steps(batch, found, 1)),
    )
    assert len(steps) == len(their_steps) == 8
    for one, other in zip(steps, their_steps, strict=True):
        assert other == pytest.approx({name: one[name] for name in other}, abs=1e-5)
    assert max(step["clip_fraction"] for step in steps) > 0


def test_generated_answers_end_with_their_first_stop_token_or_at_the_longest():
    rows = plain.generated(tiny_policy(), tiny_tokenizer(), TINY_PROMPTS, longest=6, seed=0)
    assert [row.prompt for row in rows] == TINY_PROMPTS
    assert all(1 not in row.completion[:-1] for row in rows)
    assert all(len(row.completion) == 6 or row.completion[-1] == 1 for row in rows)
    assert len({len(row.completion) for row in rows}) > 2


def test_a_round_is_described_token_by_token():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    log_ratios, entropies = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]]), torch.ones(2, 3)
    assert described(torch.tensor([1.0, 2.0]), log_ratios, entropies, mask) == {
        "answers": 2,
        "tokens": 3,
        "reward": 1.5,
        "kl": 2.0,  # (1 + 2 + 3) / 3
        "entropy": 1.0,
    }


def test_ratios_of_those_who_sample_are_of_the_time_of_a_token():
    job = make_job("ppo", steps=1)
    dropped = {"answers": 2, "tokens": 999, "reward": 9.0, "kl": 9.0, "entropy": 9.0}
    short = {"answers": 2, "tokens": 10, "reward": 1.0, "kl": 0.0, "entropy": 2.0}
    found = {
        "plain PPO": [Measured(40.0, 1.0, [dropped, short | {"tokens": 20}], 7.0)],
        OURS: [Measured(seconds, 1.0, [dropped, short], 5.0) for seconds in (10.0, 5.0, 90.0)],
    }
    plainly, ours = summarise(job, found, peak=1.0)
    assert (plainly["seconds"], plainly["ratio"], plainly["length"]) == (2.0, 1.0, 10.0)
    assert (ours["seconds"], ours["lowest"], ours["highest"], ours["ratio"]) == (1.0, 0.5, 9.0, 2.0)
    assert (ours["length"], ours["reward"], ours["seconds_an_answer"]) == (5.0, 1.0, 5.0)
    assert summarise(job._replace(by_wall=True), found, peak=1.0)[0]["seconds"] == 1.0 / 20


def test_losses_are_compared_with_ours_and_arithmetic_with_the_peak():
    job = make_job("sft", steps=2)
    losses = [{"loss": 3.0}] * 2
    found = {
        "TRL": [Measured(2.0, 2.0, [*losses, {"loss": 2.5}, {"loss": 2.0}], 7.0)],
        OURS: [Measured(1.0, 1.0, [*losses, {"loss": 2.25}, {"loss": 2.0}], 5.0)],
    }
    trl, ours = summarise(job, found, peak=1e9)
    assert (trl["difference"], ours["difference"]) == (0.25, 0.0)
    operations = sum(needed(job, *item)[1] for item in counted_items(job))
    assert ours["flops"] == operations
    assert trl["of_peak"] == pytest.approx(operations / 2 / 1e9)
    for row in (trl, ours):
        assert len(cells(row)) == len(given("CPU").columns)


@pytest.mark.slow
def test_a_variant_runs_in_a_process_of_its_own(tmp_path):
    make_model(SIZES["XS"], tmp_path)
    job = Job("sft", "XS", tmp_path, tmp_path, "fp32", steps=1, batch_size=2)
    progress: list[str] = []
    [measured] = interleaved({"1x data": (OURS, job)}, 1, progress.append)["1x data"]
    assert len(progress) == 1
    assert all(step["loss"] == pytest.approx(math.log(2048), abs=0.5) for step in measured.figures)
    assert len(measured.figures) == 3
    assert measured.cpu > 0
    assert measured.peak_memory > 100


def test_a_process_that_died_is_not_waited_for():
    here, there = Pipe()
    there.close()
    with pytest.raises(SystemExit, match="TRL died"):
        answer("TRL", here)


def test_growth_is_given_in_tokens(monkeypatch):
    def measured(contestants, *_):
        return {name: [Measured(job.steps, 1.0, [], 5.0)] for name, (_, job) in contestants.items()}

    monkeypatch.setattr(benchmarks.scaling, "interleaved", measured)
    job = make_job("sft", steps=2)
    once, fourfold = scaling(job, rounds=1, peak=1e9, tell=print, times=(1, 4))
    assert (once["data"], fourfold["data"]) == (1, 4)
    half = job._replace(steps=1)
    assert once["tokens"] == sum(needed(half, *item)[0] for item in counted_items(half))
    assert fourfold["tokens"] == pytest.approx(4 * once["tokens"], rel=0.5)
    assert fourfold["seconds_a_token"] == 4 / fourfold["tokens"]
    assert len(cells(once)) == len(growth("CPU").columns)


def test_rows_of_those_who_sample_fill_their_table():
    row = {
        "kind": "generate",
        "size": "S",
        "variant": OURS,
        "seconds": 1.0,
        "lowest": 1.0,
        "highest": 1.0,
        "ratio": 1.0,
    }
    row |= {"memory": 1.0, "length": 2.0, "seconds_an_answer": 2.0}
    assert len(cells(row)) == len(sampled("CPU").columns)
    shown = cells(row | {"reward": 1.0, "kl": 0.001, "entropy": 2.0})
    assert shown[-3:] == ["1.00", "1.0e-03", "2.00"]


def test_made_up_rows_can_be_prepared_and_a_stage_that_fails_ends_the_benchmark(tmp_path):
    make_rows(tmp_path / "many", 600)
    cost = run("tasks.prepare", tmp_path / "many")
    assert (cost.cpu > 0, cost.memory > 10) == (True, True)
    counts = json.loads((tmp_path / "many/metrics/prepare.json").read_text())
    assert {kind: figures["records"] for kind, figures in counts.items()} == {
        "demonstrations": 60,
        "preferences": 600,
        "ratings": 0,
        "ai_preferences": 0,
        "prompts": 60,
    }
    make_rows(tmp_path / "few", 20)  # two demonstrations fill no three splits
    with pytest.raises(SystemExit, match=r"tasks\.prepare failed"):
        run("tasks.prepare", tmp_path / "few")
