"""The kto stage on a tiny model."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.common.errors import InputError
from tasks.common.files import MODELS, VALIDATED, read_json
from tasks.data.answers import read_answers
from tasks.data.records import write_records
from tasks.kto import RatedMetrics, kto
from tasks.learning.reference_cache import ReferenceCache
from tasks.settings.choices import RatedLoss
from tasks.settings.params import Params
from tests.conftest import MakeParams, NotedRun, file_names, moved_weights, output_hashes, records_of
from tests.learning.test_supervised import Killed, killed_after
from tests.test_sft import read_curve

pytestmark = pytest.mark.usefixtures("workspace", "noted_run")

COLUMNS = [
    *("step", "loss", "reward", "rewards_desirable", "rewards_undesirable", "accuracy", "logps_desirable"),
    *("logps_undesirable", "kl", "grad_norm", "learning_rate"),
]


def test_the_stage_writes_what_it_says(params: Params, noted_run: NotedRun):
    kto(params)
    assert moved_weights(MODELS / "sft", MODELS / "kto") == set(load_file("models/sft/model.safetensors"))
    assert file_names("kto") == file_names("sft")
    metrics = read_json(Path("metrics/kto.json"))
    assert noted_run.figures == metrics
    assert (metrics["ratings"], metrics["steps"], metrics["validation"]["ratings"]) == (10, 6, 4)
    assert metrics["desirable"] == sum(each.desirable for each in records_of(VALIDATED, "ratings", "train")) == 7
    assert list(metrics["validation"]["before"]) == list(metrics["validation"]["after"]) == list(RatedMetrics._fields)
    assert list(read_curve("kto")[0]) == COLUMNS
    # eight evaluation points of six steps are all of them, and the beginning; four validation prompts at each
    assert {step: len(texts) for step, texts in read_answers("kto").items()} == dict.fromkeys(range(7), 4)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("runtime", [{}, {"precision": "bf16"}])
def test_training_starts_at_the_reference(make_params: MakeParams, rank: int, runtime: dict[str, str]):
    weights = {"desirable_weight": 1.0, "undesirable_weight": 2.0}
    kto(make_params(lora={"rank": rank}, runtime=runtime, kto={"epochs": 1, "batch_size": 10, **weights}))
    first = read_curve("kto")[0]
    assert first["loss"] == pytest.approx((7 * 1.0 + 3 * 2.0) / 2 / 10, abs=1e-6)
    assert first["reward"] == first["kl"] == first["accuracy"] == 0.0


def logp(model: nn.Module, prompt: list[int], answer: list[int]) -> float:
    log_probs = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(dim=-1)
    return sum(float(log_probs[len(prompt) + place - 1, token]) for place, token in enumerate(answer))


def test_a_second_step_is_that_of_the_papers_formula(make_params: MakeParams):
    """The loss of a step, from the policy that the step before has left and Ethayarajh et al.'s formula alone."""
    beta, heavier = 0.3, 1.7
    settings = {"epochs": 1, "batch_size": 5, "beta": beta, "undesirable_weight": heavier, "learning_rate": 0.02}
    kto(make_params(kto={**settings, "batch_size": 10}))  # one step: what it leaves is the policy of the second
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32).eval() for name in ("kto", "sft")
    )
    rows = records_of(VALIDATED, "ratings", "validation")
    tokenizer: Any = AutoTokenizer.from_pretrained(MODELS / "sft")
    prompts = [tokenizer.apply_chat_template(row.prompt, add_generation_prompt=True)["input_ids"] for row in rows]
    answers = [tokenizer(row.response)["input_ids"] + [tokenizer.eos_token_id] for row in rows]
    with torch.no_grad():
        ratios, kls = (
            [
                logp(policy, prompt, each) - logp(reference, prompt, each)
                for prompt, each in zip(prompts, given, strict=True)
            ]
            for given in (answers, answers[1:] + answers[:1])
        )
    point = max(0.0, sum(kls) / 4)
    losses = [
        1 - 1 / (1 + math.exp(-beta * (ratio - point)))
        if row.desirable
        else heavier * (1 - 1 / (1 + math.exp(-beta * (point - ratio))))
        for row, ratio in zip(rows, ratios, strict=True)
    ]
    after = read_json(Path("metrics/kto.json"))["validation"]["after"]
    assert after["kl"] == pytest.approx(point, abs=1e-5)
    assert after["loss"] == pytest.approx(sum(losses) / 4, abs=1e-6)
    assert abs(after["loss"] - read_json(Path("metrics/kto.json"))["validation"]["before"]["loss"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kto", "apo_zero"])
def test_every_loss_trains(make_params: MakeParams, loss: RatedLoss):
    separable = [
        record._replace(response="yes now" if record.desirable else "no thanks")
        for record in records_of(VALIDATED, "ratings")
    ]
    write_records(VALIDATED, "ratings", separable)
    kto(make_params(kto={"loss": loss, "epochs": 4, "learning_rate": 3e-3}))
    validation = read_json(Path("metrics/kto.json"))["validation"]
    assert validation["after"]["loss"] < validation["before"]["loss"]
    assert validation["after"]["reward"] > validation["before"]["reward"]


@pytest.mark.slow
def test_micro_batches_change_nothing_but_rounding(make_params: MakeParams):
    curves = []
    for tokens in (2000, 60, 1):
        kto(
            make_params(
                kto={"batch_size": 8, "epochs": 4, "learning_rate": 3e-3},
                runtime={"max_tokens_per_micro_batch": tokens},
            )
        )
        curves.append([(row["loss"], row["kl"]) for row in read_curve("kto")])
    assert max(kl for _, kl in curves[0]) > 0.01  # else the reference point would be tested at 0 alone
    for curve in curves[1:]:
        for one, other in zip(curve, curves[0], strict=True):
            assert one == pytest.approx(other, abs=1e-5)


def test_a_run_killed_in_the_middle_ends_with_the_same_bytes(
    params: Params, noted_run: NotedRun, monkeypatch: pytest.MonkeyPatch
):
    kto(params)
    expected = output_hashes("kto")
    with monkeypatch.context() as patch:
        killed_after(4, patch)
        with pytest.raises(Killed):
            kto(params)
    kto(params)
    assert output_hashes("kto") == expected


def test_a_step_without_bad_answers_has_a_margin_all_the_same(make_params: MakeParams):
    good = [record._replace(desirable=True) for record in records_of(VALIDATED, "ratings")]
    write_records(VALIDATED, "ratings", good)
    kto(make_params())
    assert read_curve("kto")[-1]["rewards_undesirable"] == 0.0


def test_weights_that_do_not_balance_are_reported(make_params: MakeParams, caplog: pytest.LogCaptureFixture):
    kto(make_params(kto={"epochs": 1, "desirable_weight": 1.0, "undesirable_weight": 1.0}))
    assert "7 answers are good and 3 bad, which kto.undesirable_weight 1 does not balance; 2.33 would" in caplog.text
    caplog.clear()
    kto(make_params(kto={"epochs": 1, "desirable_weight": 1.0, "undesirable_weight": 2.33}))
    assert "balance" not in caplog.text


def test_ratings_of_one_prompt_are_refused(params: Params):
    same = [
        record._replace(prompt=[{"role": "user", "content": "order"}]) for record in records_of(VALIDATED, "ratings")
    ]
    write_records(VALIDATED, "ratings", same)
    with pytest.raises(InputError, match="all ratings are of one prompt"):
        kto(params)


def test_an_empty_split_says_the_cure(params: Params):
    write_records(VALIDATED, "ratings", [])
    with pytest.raises(InputError, match=r"ratings.jsonl has no row in the train split: give more rows"):
        kto(params)


def test_another_reference_than_the_policy_is_noticed(params: Params, monkeypatch: pytest.MonkeyPatch):
    logps = ReferenceCache.logps
    monkeypatch.setattr(ReferenceCache, "logps", lambda *given, **options: logps(*given, **options) + 0.01)
    with pytest.raises(AssertionError, match="policy and reference differ"):
        kto(params)
