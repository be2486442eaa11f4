"""A stage that cannot fit stops before it loads anything, and says what would; one that fits goes on at no cost."""

import logging
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.learning.memory import check
from tasks.learning.memory.check import check_memory
from tests.learning.memory.shapes import settings, shape

ALL_WEIGHTS = 6_819_072  # of the shape


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's folder: its configuration, and files of the right size that nobody reads."""
    monkeypatch.chdir(tmp_path)
    shape().save_pretrained("models/base")
    with Path("models/base/model.safetensors").open("wb") as file:
        file.truncate(4 * ALL_WEIGHTS)


def with_memory(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "memory_of", lambda _: size)


@pytest.mark.usefixtures("base")
def test_what_cannot_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch):
    with_memory(15 * ALL_WEIGHTS, monkeypatch)
    with pytest.raises(
        InputError, match=r"sft needs 0\.1 GB .* alone, and the cpu has 0\.1 GB: trueline configure"
    ) as raised:
        check_memory("sft", settings())
    assert "runtime.optimiser=adamw_8bit" in str(raised.value)
    with_memory(ALL_WEIGHTS, monkeypatch)
    with pytest.raises(InputError, match="no setting makes it fit: take a smaller base model"):
        check_memory("sft", settings())


@pytest.mark.usefixtures("base")
def test_what_may_not_fit_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    with_memory(17 * ALL_WEIGHTS, monkeypatch)
    with caplog.at_level(logging.WARNING):
        check_memory("sft", settings())
    assert "sft may need" in caplog.text
    caplog.clear()
    with_memory(200 * ALL_WEIGHTS, monkeypatch)
    check_memory("sft", settings())
    assert not caplog.records


@pytest.mark.usefixtures("base")
def test_a_small_model_is_not_looked_at(monkeypatch: pytest.MonkeyPatch):
    with_memory(10**12, monkeypatch)
    monkeypatch.setattr(check, "MemoryModel", None)
    check_memory("sft", settings())
    check_memory("ppo", settings())  # its models are not there yet: the stage says so itself
