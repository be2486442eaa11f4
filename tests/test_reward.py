"""The reward stage on a tiny model."""

import math
import statistics
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from tasks.common import progress
from tasks.common.errors import InputError
from tasks.common.files import MODELS, VALIDATED, read_json
from tasks.data.encoding.encoded import encoded_demonstrations, encoded_preferences
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import Message, Preference, Vote, write_records
from tasks.held_out_reward import held_out_reward
from tasks.learning.batches import collate
from tasks.learning.held_out import pair_batches, row_batches
from tasks.learning.models.loading import load_reward, new_reward_model, normalise_scores
from tasks.learning.models.outputs import completion_scores
from tasks.learning.reward_model.calibration import ScoredPair, reward_metrics
from tasks.learning.reward_model.training import accuracies, held_out_loss, pair_sources, scored_pairs
from tasks.reward import reward
from tasks.settings.params import Params
from tests.conftest import MODEL_FILES, MakeParams, NotedRun, file_names, moved_weights, records_of
from tests.learning.distributed_run import EnoughError, stop_after
from tests.test_sft import read_curve

pytestmark = pytest.mark.usefixtures("workspace", "noted_run")
CPU = torch.device("cpu")


def test_the_stage_writes_what_it_says(params: Params, noted_run: NotedRun, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_HIDDEN", 0.0)
    reward(params)
    shown = capsys.readouterr().err
    for doing in ("held-out pairs before", "held-out pairs after", "test pairs"):
        assert f"reward: {doing}: 100%" in shown
    assert file_names("reward") == MODEL_FILES
    trained = load_file("models/reward/model.safetensors")
    backbone = {name for name in trained if name != "score.weight"}
    assert moved_weights(MODELS / "sft", MODELS / "reward") == backbone
    assert noted_run.figures == read_json(Path("metrics/reward.json"))
    assert list(read_curve("reward")[0]) == ["step", "loss", "accuracy", "margin", "grad_norm", "learning_rate"]


def flat(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Figures of nested groups and of lists under joined names, but for those that are not there."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        nested = {str(place): each for place, each in enumerate(value)} if isinstance(value, list) else value
        found |= flat(nested, f"{prefix}{name}.") if isinstance(nested, dict) else {f"{prefix}{name}": nested}
    return {name: value for name, value in found.items() if value is not None}


FITTED = {"head_init": "fit", "epochs": 0}


@pytest.mark.parametrize("settings", [{}, FITTED], ids=["trained", "fitted"])
def test_the_figures_are_those_of_the_written_model_on_the_test_split(
    make_params: MakeParams, settings: dict[str, object]
):
    params = make_params(reward=settings)
    reward(params)
    metrics = read_json(Path("metrics/reward.json"))
    model, tokenizer = load_reward(MODELS / "reward", params), load_tokenizer(MODELS / "reward")
    normalise_scores(model, 0.0, 1.0)  # raw scores: the margins are log-odds
    splits = {}
    for split in ("validation", "test"):
        splits[split] = encoded_preferences(VALIDATED, split, tokenizer, None)
    figures = reward_metrics(
        scored_pairs(model, splits["test"], params.runtime.max_tokens_per_micro_batch, "test pairs")
    )
    written = {name: metrics[name] for name in figures}
    # Weights mapped from a file may lie in memory otherwise than those that were trained: the last bit differs.
    assert flat(written) == pytest.approx(flat(figures), rel=1e-5)
    batches = pair_batches(splits["validation"], params.runtime.max_tokens_per_micro_batch, CPU)
    held_out = held_out_loss(model, batches, params.reward, "held out")
    assert metrics["validation"]["loss"]["after"] == pytest.approx(held_out, rel=1e-6)
    assert metrics["accuracy"]["low"] <= metrics["accuracy"]["value"] <= metrics["accuracy"]["high"]
    assert (metrics["pairs"], metrics["accuracy"]["pairs"]) == (10, 4)
    assert [each["accuracy"]["pairs"] for each in metrics["baselines"].values()] == [4, 4]
    learned = encoded_preferences(VALIDATED, "train", tokenizer, None)
    assert metrics["tokens"] == sum(len(pair.chosen.completion) + len(pair.rejected.completion) for pair in learned)


def test_scores_of_demonstrated_answers_have_mean_0_and_deviation_1(params: Params):
    reward(params)
    model, tokenizer = load_reward(MODELS / "reward", params), load_tokenizer(MODELS / "reward")
    rows = encoded_demonstrations(VALIDATED, "validation", tokenizer, None)
    batches = row_batches(rows, 4, CPU)
    with torch.no_grad():
        scores = [score for batch in batches.batches for score in completion_scores(model, batch).tolist()]
    assert statistics.fmean(scores) == pytest.approx(0.0, abs=1e-4)  # scores near 1e-2 scaled up 100 times, in fp32
    assert statistics.pstdev(scores) == pytest.approx(1.0, abs=1e-4)
    config, metrics = read_json(Path("models/reward/config.json")), read_json(Path("metrics/reward.json"))
    assert metrics["normalisation"] == {"bias": config["score_bias"], "gain": config["score_gain"]}


def test_the_pooling_is_saved_with_the_model(make_params: MakeParams):
    losses = []
    for pooling in ("last", "mean"):
        reward(make_params(reward={"pooling": pooling}))
        assert read_json(Path("models/reward/config.json"))["score_pooling"] == pooling
        losses.append(read_curve("reward")[0]["loss"])
    assert losses[0] != losses[1]


def test_the_head_alone_can_be_fitted_and_nothing_else_is_trained(make_params: MakeParams):
    easy = [record._replace(chosen="yes", rejected="no") for record in records_of(VALIDATED, "preferences")]
    write_records(VALIDATED, "preferences", easy)
    reward(make_params(reward=FITTED))
    metrics, first = read_json(Path("metrics/reward.json")), Path("models/reward/model.safetensors").read_bytes()
    assert moved_weights(MODELS / "sft", MODELS / "reward") == set()
    assert (metrics["steps"], metrics["accuracy"]["value"]) == (0, 1.0)
    assert "training_loss" not in metrics
    assert metrics["head_fit"]["largest_gradient"] < 1e-6
    by_penalty = {float(l2): loss for l2, loss in metrics["head_fit"]["cross_validated_loss"].items()}
    assert metrics["head_fit"]["l2"] == min(by_penalty, key=by_penalty.__getitem__)
    assert Path("curves/reward.csv").read_text() == "step,loss\n"
    reward(make_params(reward=FITTED))
    assert Path("models/reward/model.safetensors").read_bytes() == first


def test_training_goes_on_from_the_fitted_head(make_params: MakeParams):
    reward(make_params(reward=FITTED | {"head_l2": 0.1}))
    alone = read_json(Path("metrics/reward.json"))
    reward(make_params(reward={"head_init": "fit", "head_l2": 0.1}, lora={"rank": 2}))
    metrics = read_json(Path("metrics/reward.json"))
    assert metrics["head_fit"] == alone["head_fit"]
    assert metrics["validation"]["loss"]["before"] == pytest.approx(alone["validation"]["loss"]["after"], rel=1e-5)
    assert metrics["validation"]["loss"]["after"] != metrics["validation"]["loss"]["before"]


def test_pairs_of_one_prompt_give_no_folds(make_params: MakeParams):
    asked = [Message(role="user", content="Where is it?")]
    same = [record._replace(prompt=asked) for record in records_of(VALIDATED, "preferences")]
    write_records(VALIDATED, "preferences", same)
    with pytest.raises(InputError, match=r"reward: head_l2 cannot be chosen .*: all training pairs share one prompt"):
        reward(make_params(reward=FITTED))


# Labels of training and validation contradict each other, so every step makes the loss larger.
STOPPED = {"epochs": 30, "learning_rate": 1e-2, "early_stopping": 2, "batch_size": 5, "schedule": "constant"}


def contradict() -> None:
    easy = [
        record._replace(
            **dict(zip(("chosen", "rejected"), ("yes", "no")[:: 1 if record.split == "train" else -1], strict=True))
        )
        for record in records_of(VALIDATED, "preferences")
    ]
    write_records(VALIDATED, "preferences", easy)


@pytest.mark.parametrize("lora", [0, 2])
def test_training_that_no_longer_helps_ends_and_the_best_weights_come_back(make_params: MakeParams, lora: int):
    contradict()
    reward(make_params(reward=STOPPED, lora={"rank": lora}))
    metrics = read_json(Path("metrics/reward.json"))
    evaluations, best_step = metrics["early_stopping"]["evaluations"], metrics["early_stopping"]["best_step"]
    best = min(evaluations, key=lambda each: each["loss"])
    assert best_step == best["step"]
    assert metrics["steps"] == evaluations[-1]["step"] == best_step + 2
    assert metrics["validation"]["loss"]["after"] == pytest.approx(best["loss"], rel=1e-5)
    assert evaluations[-1]["loss"] > best["loss"] + 0.01


def test_a_killed_run_stops_where_an_unbroken_one_does_with_the_same_bytes(make_params: MakeParams):
    contradict()
    params = make_params(reward=STOPPED, runtime={"checkpoint_every": 1})
    reward(params)
    files = [Path("models/reward/model.safetensors"), Path("metrics/reward.json"), Path("curves/reward.csv")]
    expected = [file.read_bytes() for file in files]
    with pytest.MonkeyPatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(EnoughError):
            reward(params)
    assert list(Path(".trueline/checkpoints/reward").iterdir())
    reward(params)
    assert [file.read_bytes() for file in files] == expected


def test_the_head_has_a_rate_of_its_own(make_params: MakeParams):
    moved = []
    for rate in (1e-9, 0.1):
        reward(make_params(reward={"head_learning_rate": rate, "schedule": "constant"}))
        head = load_file("models/reward/model.safetensors")["score.weight"]
        start = torch.empty(1, 32).normal_(std=33**-0.5, generator=torch.Generator().manual_seed(7))
        moved.append((head - start).abs().max().item())
    assert moved[0] < 1e-6
    assert moved[1] > 0.05


def test_it_learns_what_separates_the_pairs(make_params: MakeParams):
    easy = [record._replace(chosen="yes", rejected="no") for record in records_of(VALIDATED, "preferences")]
    write_records(VALIDATED, "preferences", easy)
    reward(make_params(reward={"epochs": 10}))
    metrics = read_json(Path("metrics/reward.json"))
    assert metrics["accuracy"]["value"] == 1.0
    loss = metrics["validation"]["loss"]
    assert loss["after"] < 0.1 < math.log(2) - 0.1 < loss["before"]


def test_accuracy_is_given_by_source_and_annotator(make_params: MakeParams):
    easy = [record._replace(chosen="yes", rejected="no") for record in records_of(VALIDATED, "preferences")]
    # In one source the answers stand the wrong way round. Shorter prompts come later, and are scored first.
    tests = [
        record._replace(prompt=[Message(role="user", content="order " * words)], source="org/name")
        for record, words in zip((each for each in easy if each.split == "test"), (9, 7, 5, 1), strict=True)
    ]
    for place in (0, 1, 3):
        tests[place] = tests[place]._replace(source="data/my pairs (v2).jsonl", chosen="no", rejected="yes")
    for place, name in ((2, "ada"), (3, "ada")):  # the other two name nobody
        tests[place] = tests[place]._replace(annotator=name)
    write_records(VALIDATED, "preferences", [*(each for each in easy if each.split != "test"), *tests])
    reward(make_params(reward={"epochs": 10}))
    metrics = read_json(Path("metrics/reward.json"))

    def rows(key: str) -> list[tuple[str, float, int]]:
        return [(name, found["value"], found["pairs"]) for name, found in metrics[key].items()]

    assert rows("accuracy_by_source") == [("data/my pairs (v2).jsonl", 0.0, 3), ("org/name", 1.0, 1)]
    assert rows("accuracy_by_annotator") == [("ada", 0.5, 2)]


def test_an_annotator_is_measured_on_own_votes():
    def vote(annotator: str, choice: Literal["chosen", "rejected", "tie"], counted: bool = True) -> Vote:
        return Vote(annotator=annotator, choice=choice, counted=counted, id="", source="", row=1)

    votes = [vote("ada", "chosen"), vote("bob", "rejected"), vote("cy", "tie"), vote("dee", "chosen", counted=False)]
    asked = Message(role="user", content="Where is it?")
    answer = Message(role="assistant", content="Here.")
    pair = Preference("1", "test", "p", 1, [asked], "yes", "no", None, 0.5, votes)
    write_records(
        VALIDATED,
        "preferences",
        [pair, pair._replace(annotator="bob", share=None, votes=None, prompt=[asked, answer, asked])],
    )
    sources = pair_sources("test")
    assert [each.choices for each in sources] == [[("ada", True), ("bob", False)], [("bob", True)]]
    assert sources[0].conversation == sources[1].conversation
    found = accuracies([ScoredPair(1.0, 0.0, 1, 1), ScoredPair(1.0, 0.0, 1, 1)], sources)["accuracy_by_annotator"]
    # The model follows most votes: ada is right, bob in one of two.
    assert {name: (each["value"], each["pairs"]) for name, each in found.items()} == {"ada": (1.0, 1), "bob": (0.5, 2)}


def test_pairs_are_scored_in_their_order_whatever_the_passes(params: Params):
    model, tokenizer = new_reward_model(MODELS / "sft", params), load_tokenizer(MODELS / "sft")
    pairs = encoded_preferences(VALIDATED, "train", tokenizer, None)
    lengths = pairs.lengths.tolist()
    assert lengths != sorted(lengths)
    alone = [completion_scores(model, collate(list(pair))).tolist() for pair in pairs]
    for tokens in (1, 100, 10_000):
        found = scored_pairs(model, pairs, tokens, "test pairs")
        assert [[pair.chosen_length, pair.rejected_length] for pair in found] == pairs.counts[:, 1:].tolist()
        for pair, scores in zip(found, alone, strict=True):
            assert [pair.chosen_score, pair.rejected_score] == pytest.approx(scores, abs=1e-5)


def test_the_head_learns_beside_adapters_and_all_is_merged(make_params: MakeParams):
    params = make_params(lora={"rank": 4})
    reward(params)
    trained = load_file("models/reward/model.safetensors")
    assert moved_weights(MODELS / "sft", MODELS / "reward") == {name for name in trained if "proj" in name}
    head = load_file("models/reward/model.safetensors")["score.weight"]
    start = torch.empty(1, 32).normal_(std=33**-0.5, generator=torch.Generator().manual_seed(params.seed))
    assert not head.equal(start)


def test_micro_batches_change_nothing_but_rounding(make_params: MakeParams):
    curves = []
    for tokens in (2000, 150, 1):
        settings = {"batch_size": 10, "epochs": 4, "learning_rate": 1e-3}
        reward(make_params(reward=settings, runtime={"max_tokens_per_micro_batch": tokens}))
        curves.append([row["loss"] for row in read_curve("reward")])
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-5)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_empty_split_says_the_cure(params: Params, split: str):
    records = [record for record in records_of(VALIDATED, "preferences") if record.split != split]
    write_records(VALIDATED, "preferences", records)
    with pytest.raises(InputError, match=rf"preferences.jsonl has no row in the {split} split: .*prepare.split"):
        reward(params)


@pytest.mark.parametrize("stage", [reward, held_out_reward])
def test_where_only_functions_are_learned_from_nothing_is_trained(stage, make_params: MakeParams, caplog):
    write_records(VALIDATED, "preferences", [])  # nothing is missed
    length = {"name": "brevity", "source": "infra/example/rewards.py:score", "weight": 1.0}
    stage(make_params(rewards={"training": [length]}))
    name = stage.__name__
    assert f"{name}: No reward model was trained: rewards.training in params.yaml names functions only." in caplog.text
    assert file_names(name) == ["NOTE.txt"]
    assert read_json(Path(f"metrics/{name}.json")) == {"trained": False}
    assert Path(f"curves/{name}.csv").read_text() == "step,loss\n"


def test_pairs_of_a_ranked_list_count_as_one_and_strong_ones_ask_for_more(make_params: MakeParams):
    """A pair in three copies of a third each is learned from as the pair alone; strength moves the loss."""
    pairs = records_of(VALIDATED, "preferences")
    thirds = [each._replace(weight=1 / 3) for each in pairs for _ in range(3)]
    losses = []
    for rows, size in ((pairs, 10), (thirds, 30)):
        write_records(VALIDATED, "preferences", rows)
        reward(make_params(reward={"epochs": 2, "batch_size": size}, runtime={"max_tokens_per_micro_batch": 4000}))
        losses.append([row["loss"] for row in read_curve("reward")])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    strong = [each._replace(strength=2.0) for each in pairs]
    write_records(VALIDATED, "preferences", strong)
    settings = {"epochs": 1, "batch_size": 10, "centering": 0.0}
    for strength_margin, margin in ((0.5, 0.0), (0.0, 1.0)):  # 0.5 for each of 2 points is a margin of 1
        reward(make_params(reward=settings | {"strength_margin": strength_margin, "margin": margin}))
        losses.append([row["loss"] for row in read_curve("reward")])
    assert losses[2] == losses[3]
