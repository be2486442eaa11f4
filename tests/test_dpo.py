"""The dpo stage on a tiny model."""

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tasks.common.errors import InputError
from tasks.common.files import AI_VALIDATED, MODELS, VALIDATED, read_json
from tasks.data.answers import read_answers
from tasks.data.encoding.encoded import encoded_preferences
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import write_records
from tasks.dpo import PairMetrics, dpo
from tasks.learning.reference_cache import ReferenceCache
from tasks.settings.choices import PreferenceLoss
from tasks.settings.params import Params
from tests.conftest import MakeParams, NotedRun, file_names, moved_weights, records_of
from tests.test_sft import read_curve

pytestmark = pytest.mark.usefixtures("workspace", "noted_run")

COLUMNS = [
    *("step", "loss", "reward", "rewards_chosen", "rewards_rejected", "accuracy", "logps_chosen", "logps_rejected"),
    *("nll_chosen", "grad_norm", "learning_rate"),
]


def test_the_stage_writes_what_it_says(params: Params, noted_run: NotedRun):
    dpo(params)
    assert moved_weights(MODELS / "sft", MODELS / "dpo") == set(load_file("models/sft/model.safetensors"))
    assert file_names("dpo") == file_names("sft")
    metrics = read_json(Path("metrics/dpo.json"))
    assert noted_run.figures == metrics
    assert (metrics["pairs"], metrics["steps"], metrics["validation"]["pairs"]) == (10, 6, 4)
    learned = encoded_preferences(VALIDATED, "train", load_tokenizer(MODELS / "sft"), None)
    assert metrics["tokens"] == sum(len(pair.chosen.completion) + len(pair.rejected.completion) for pair in learned)
    assert list(metrics["validation"]["before"]) == list(metrics["validation"]["after"]) == list(PairMetrics._fields)
    assert list(read_curve("dpo")[0]) == COLUMNS
    # eight evaluation points of six steps are all of them, and the beginning; four validation prompts at each
    answers = read_answers("dpo")
    assert {step: len(given) for step, given in answers.items()} == dict.fromkeys(range(7), 4)
    assert [answer.logp for answer in answers[0]] != [answer.logp for answer in answers[6]]


@pytest.mark.parametrize("runtime", [{}, {"precision": "bf16"}])
@pytest.mark.parametrize("rank", [0, 4])
def test_training_starts_at_the_reference(make_params: MakeParams, rank: int, runtime: dict[str, str]):
    dpo(make_params(lora={"rank": rank}, runtime=runtime, dpo={"epochs": 1}))
    first = read_curve("dpo")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards_chosen"] == first["rewards_rejected"] == first["reward"] == 0.0
    assert first["accuracy"] == 0.0  # a tie is no win
    before = read_json(Path("metrics/dpo.json"))["validation"]["before"]
    assert before["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert before["reward"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "label_smoothing", "first"),
    [
        ("sigmoid", 0.1, math.log(2)),
        ("hinge", 0.0, 1.0),
        ("ipo", 0.0, 25.0),  # (0 - 1 / (2 * 0.1))^2
        ("robust", 0.1, math.log(2)),  # (0.9 - 0.1) log 2 / (1 - 0.2)
        ("sigmoid_norm", 0.0, math.log(2)),
        ("simpo", 0.0, None),
    ],
)
def test_every_loss_trains(make_params: MakeParams, loss: PreferenceLoss, label_smoothing: float, first: float | None):
    separable = [
        record._replace(chosen="yes now", rejected="no thanks") for record in records_of(VALIDATED, "preferences")
    ]
    write_records(VALIDATED, "preferences", separable)
    dpo(make_params(dpo={"loss": loss, "label_smoothing": label_smoothing, "epochs": 4, "learning_rate": 3e-3}))
    curve = read_curve("dpo")
    if first is not None:
        assert curve[0]["loss"] == pytest.approx(first, rel=1e-6)
    validation = read_json(Path("metrics/dpo.json"))["validation"]
    assert validation["after"]["loss"] < validation["before"]["loss"]
    assert validation["after"]["reward"] > validation["before"]["reward"]


def test_the_likelihood_term_is_added_with_its_weight(make_params: MakeParams):
    dpo(make_params(dpo={"nll_weight": 0.5, "epochs": 1}))
    first = read_curve("dpo")[0]
    assert first["loss"] == pytest.approx(math.log(2) + 0.5 * first["nll_chosen"], abs=1e-6)


@pytest.mark.slow
def test_micro_batches_change_nothing_but_rounding(make_params: MakeParams):
    curves = []
    for tokens in (2000, 150, 1):
        dpo(
            make_params(
                dpo={"batch_size": 10, "epochs": 4, "nll_weight": 0.1}, runtime={"max_tokens_per_micro_batch": tokens}
            )
        )
        curves.append([row["loss"] for row in read_curve("dpo")])
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-5)


@pytest.mark.slow
def test_adapters_are_merged_into_full_weights(make_params: MakeParams):
    dpo(make_params(lora={"rank": 4}))
    linear = {name for name in load_file("models/sft/model.safetensors") if "proj" in name}
    assert moved_weights(MODELS / "sft", MODELS / "dpo") == linear


def test_another_reference_than_the_policy_is_noticed(make_params: MakeParams, monkeypatch: pytest.MonkeyPatch):
    logps = ReferenceCache.logps
    monkeypatch.setattr(ReferenceCache, "logps", lambda *given, **options: logps(*given, **options) + 0.01)
    with pytest.raises(AssertionError, match="policy and reference differ"):
        dpo(make_params())
    dpo(make_params(dpo={"loss": "simpo"}))  # which has none


def test_an_empty_split_says_the_cure(params: Params):
    records = [record for record in records_of(VALIDATED, "preferences") if record.split != "train"]
    write_records(VALIDATED, "preferences", records)
    with pytest.raises(InputError, match=r"preferences.jsonl has no row in the train split: .*prepare.split"):
        dpo(params)


def test_pairs_of_a_ranked_list_count_as_one(make_params: MakeParams):
    """A pair in three copies of a third each is learned from as the pair alone."""
    [*pairs] = records_of(VALIDATED, "preferences")
    settings = {"epochs": 1, "learning_rate": 1e-2, "nll_weight": 0.0}
    thirds = [each._replace(weight=1 / 3) for each in pairs for _ in range(3)]
    losses = []
    for rows, size in ((pairs, 10), (thirds, 30)):
        write_records(VALIDATED, "preferences", rows)
        dpo(make_params(dpo=settings | {"batch_size": size}, runtime={"max_tokens_per_micro_batch": 2000}))
        losses.append(read_json(Path("metrics/dpo.json"))["validation"]["after"]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    write_records(VALIDATED, "preferences", [*pairs[:-8], *(each._replace(weight=9.0) for each in pairs[-8:])])
    dpo(make_params(dpo=settings | {"batch_size": 10}))
    assert read_json(Path("metrics/dpo.json"))["validation"]["after"]["loss"] == pytest.approx(losses[0], abs=1e-6)


def test_ai_pairs_are_learned_beside_those_of_people_which_alone_measure(make_params: MakeParams):
    """The same pairs, half of them as AI pairs, give the same model: they come behind those of people."""
    pairs = records_of(VALIDATED, "preferences", "train")
    held_out = [each for each in records_of(VALIDATED, "preferences") if each.split != "train"]
    pairs = [each._replace(weight=1 / (1 + n % 2)) for n, each in enumerate(pairs)]
    params, models = make_params(dpo={"epochs": 1}), []
    for of_people in (10, 5):
        write_records(VALIDATED, "preferences", [*pairs[:of_people], *held_out])
        write_records(AI_VALIDATED, "ai_preferences", pairs[of_people:])
        dpo(params)
        models.append(Path("models/dpo/model.safetensors").read_bytes())
        metrics = read_json(Path("metrics/dpo.json"))
        assert (metrics["pairs"], metrics["validation"]["pairs"]) == (10, 4)
    assert models[0] == models[1]
