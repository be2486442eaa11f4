"""`trueline plan --gpu`: what fits, what would make it fit, and how it is shown."""

from pathlib import Path

import pytest
import torch

from flows.display.memory import show_memory
from flows.inspection.matrix_rate import matrix_rate
from flows.inspection.memory import Devices, memory_plan, read_shape
from tasks.common.errors import InputError
from tasks.learning.memory.flops import tokens_a_second
from tasks.learning.memory.launchers import sharing_of
from tasks.learning.memory.stages import RowLengths, Sharing
from tests.conftest import ROOT
from tests.learning.memory.shapes import settings, shape


@pytest.mark.slow
def test_what_does_not_fit_is_named_with_the_least_change(capsys: pytest.CaptureFixture[str]) -> None:
    params = settings(align={"method": "dpo", "stage": "dpo"}, validate={"max_tokens": 64})
    small = memory_plan(
        params, shape(num_hidden_layers=2), Devices(1.14, tflops=100), RowLengths(64, 16)
    )  # 1 GB is the context's
    assert [stage["stage"] for stage in small["stages"]] == ["sft", "reward", "held_out_reward", "dpo", "evaluate"]
    assert [stage["stage"] for stage in small["stages"] if not stage["fits"]] == ["reward", "held_out_reward", "dpo"]
    assert small["change"]["settings"]
    assert all(peak * 1.05 + 1 <= 1.14 + 0.11 for peak in small["change"]["peaks_gb"].values())  # rounded to 0.1 GB
    show_memory(small)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"The least change that fits: trueline configure {' '.join(small['change']['settings'])}" in shown
    assert "Tokens a second on one of them, by 100 TFLOP/s" in shown


def test_the_configuration_alone_is_read(tmp_path: Path) -> None:
    shape().save_pretrained(tmp_path)
    assert read_shape(tmp_path).hidden_size == read_shape(tmp_path / "config.json").hidden_size == 256
    with pytest.raises(InputError, match="does not exist: give a model"):
        read_shape(tmp_path / "other")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="transformers cannot use it"):
        read_shape(tmp_path)


def test_the_launcher_says_how_weights_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    def launched(file: str, processes: int) -> Sharing:
        return sharing_of(f"accelerate launch --config_file infra/accelerate/{file} -m", processes)

    assert sharing_of("python -m", 8) == launched("ddp.yaml", 8) == Sharing(8)
    assert launched("fsdp.yaml", 8) == Sharing(8, is_sharded=True)
    assert launched("fsdp.yaml", 1) == Sharing(1)  # nothing to share
    assert launched("fsdp_offload.yaml", 1) == Sharing(1, is_sharded=True, offloads=True)
    with pytest.raises(InputError, match="which does not exist"):
        launched("none.yaml", 2)


def test_tokens_follow_from_operations() -> None:
    # Per token: 2 * (weights without the look-up + layers * width * length), three times with the backward pass.
    weights, length = 6_819_072 - 4096 * 256, 64
    expected = 1e12 / (3 * 2 * (weights + 6 * 256 * length))
    found = tokens_a_second("sft", shape(tie_word_embeddings=False), settings(), RowLengths(length, 16), 1e12)
    assert found == pytest.approx(expected)
    adapted = tokens_a_second(
        "sft", shape(tie_word_embeddings=False), settings(lora={"rank": 1}), RowLengths(length, 16), 1e12
    )
    assert adapted == pytest.approx(1.5 * expected)


def test_the_rate_of_products_is_measured() -> None:
    assert 1e8 < matrix_rate(shape(), "fp32", 256, torch.device("cpu")) < 1e13
