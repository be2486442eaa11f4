"""The sft stage on a tiny model."""

import csv
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tasks.common import progress
from tasks.common.errors import InputError
from tasks.common.files import MODELS, VALIDATED, read_json
from tasks.data.encoding import encoded
from tasks.data.encoding.encoded import encoded_demonstrations
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import write_records
from tasks.learning.held_out import row_batches
from tasks.learning.models.loading import load_policy
from tasks.settings.params import Params
from tasks.sft import likelihood, sft
from tests.conftest import MODEL_FILES, MakeParams, NotedRun, file_names, moved_weights, output_hashes, records_of

pytestmark = pytest.mark.usefixtures("workspace")


def read_curve(stage: str) -> list[dict[str, float]]:
    with Path(f"curves/{stage}.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_the_stage_writes_what_it_says(params: Params, noted_run: NotedRun):
    sft(params)
    assert file_names("sft") == sorted([*MODEL_FILES, "generation_config.json"])
    assert moved_weights(MODELS / "base", MODELS / "sft") == set(load_file("models/base/model.safetensors"))
    assert not Path(".trueline/checkpoints/sft").exists()  # the checkpoint has served
    assert noted_run.figures == read_json(Path("metrics/sft.json"))
    assert noted_run.folders == [Path("models/sft")]


def test_the_figures_are_those_of_the_written_model(params: Params, noted_run: NotedRun):
    sft(params)
    metrics, curve = read_json(Path("metrics/sft.json")), read_curve("sft")
    tokenizer = load_tokenizer(MODELS / "base")
    rows, held_out = (encoded_demonstrations(VALIDATED, split, tokenizer, None) for split in ("train", "validation"))
    assert metrics["rows"] == 10
    assert metrics["tokens"] == sum(len(row.completion) for row in rows)
    assert metrics["steps"] == len(curve) == 6  # ceil(10 / 4) steps in each of 2 epochs
    assert metrics["training_loss"] == curve[-1]["loss"]
    batches = row_batches(held_out, params.runtime.max_tokens_per_micro_batch, torch.device("cpu"))
    for when, folder in (("before", "base"), ("after", "sft")):
        found = metrics["validation"][when]
        expected = likelihood(load_policy(MODELS / folder, params, trainable=False), batches, "held out")
        assert found == expected._asdict()
        assert found["perplexity"] == math.exp(found["loss"])
    assert metrics["validation"]["after"]["loss"] < metrics["validation"]["before"]["loss"]
    assert list(curve[0]) == ["step", "loss", "grad_norm", "learning_rate"]


def test_the_passes_over_held_out_rows_are_shown(params, noted_run, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_HIDDEN", 0.0)
    sft(params)
    shown = capsys.readouterr().err
    assert "sft: held-out rows before: 100%" in shown
    assert "sft: held-out rows after: 100%" in shown


def test_likelihood_of_a_uniform_model(tiny_model: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    tokenizer = load_tokenizer(tiny_model)
    rows = encoded_demonstrations(VALIDATED, "test", tokenizer, None)
    found = likelihood(model, row_batches(rows, 3, torch.device("cpu")), "held out")
    # every one of the tokens of the vocabulary is as likely as any other
    assert found.perplexity == pytest.approx(model.config.vocab_size, rel=1e-5)
    assert found.accuracy == 1.0  # none is likelier


def test_adapters_are_merged_into_full_weights(make_params: MakeParams, noted_run: NotedRun):
    sft(make_params(lora={"rank": 4}))
    moved = moved_weights(MODELS / "base", MODELS / "sft")
    linear = {name for name in load_file("models/base/model.safetensors") if "proj" in name}
    assert moved == linear  # embeddings, norms and head stay; the names are those of the base model


def test_bf16_trains_and_writes_fp32(make_params: MakeParams, noted_run: NotedRun):
    sft(make_params(runtime={"precision": "bf16"}))
    assert {weight.dtype for weight in load_file("models/sft/model.safetensors").values()} == {torch.float32}
    validation = read_json(Path("metrics/sft.json"))["validation"]
    assert validation["after"]["loss"] < validation["before"]["loss"]


def test_micro_batches_change_nothing_but_rounding(make_params: MakeParams, noted_run: NotedRun):
    curves = []
    for tokens in (2000, 150, 80, 1):
        sft(make_params(sft={"batch_size": 10, "epochs": 4}, runtime={"max_tokens_per_micro_batch": tokens}))
        curves.append([row["loss"] for row in read_curve("sft")])
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)  # four steps of Adam at 1e-2 magnify the last bit


def test_rows_that_were_encoded_before_give_the_same_bytes(
    params: Params, noted_run: NotedRun, monkeypatch: pytest.MonkeyPatch
):
    sft(params)
    written = output_hashes("sft")
    monkeypatch.setattr(encoded, "encode_records", None)
    sft(params)
    assert output_hashes("sft") == written


def test_an_empty_split_says_the_cure(params: Params, noted_run: NotedRun):
    records = [record for record in records_of(VALIDATED, "demonstrations") if record.split != "validation"]
    write_records(VALIDATED, "demonstrations", records)
    with pytest.raises(InputError, match=r"demonstrations.jsonl has no row in the validation split: .*prepare.split"):
        sft(params)


def test_a_row_longer_than_the_context_names_file_and_row(params: Params, noted_run: NotedRun):
    first, *others = records_of(VALIDATED, "demonstrations")
    write_records(VALIDATED, "demonstrations", [first._replace(response="yes " * 200), *others])
    with pytest.raises(InputError, match=r"raw.jsonl row 1: .*the model's context is 128: shorten"):
        sft(params)
