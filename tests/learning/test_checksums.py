"""A seal tells every flipped bit, every cut, every addition, and a whole file of another name."""

from pathlib import Path

import pytest

from tasks.learning.training import checksums
from tasks.learning.training.checksums import ChecksumWriter, is_intact

CONTENT = bytes(range(256)) * 2


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "step-1"
    with path.open("wb") as opened:
        sealing = ChecksumWriter(opened, "sft/step-1")
        for start in range(0, len(CONTENT), 100):
            sealing.write(CONTENT[start : start + 100])
        sealing.flush()
        sealing.end()
    return path


@pytest.mark.parametrize("chunk", [1 << 20, 64, 63])
def test_a_whole_file_is_known_by_its_name(file: Path, monkeypatch: pytest.MonkeyPatch, chunk: int):
    monkeypatch.setattr(checksums, "CHUNK", chunk)
    assert file.read_bytes().startswith(CONTENT)
    assert is_intact(file, "sft/step-1")
    assert not is_intact(file, "sft/step-2")
    assert not is_intact(file, "dpo/step-1")


def test_every_flipped_bit_is_seen(file: Path):
    whole = file.read_bytes()
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert not is_intact(file, "sft/step-1"), place


def test_every_cut_and_addition_is_seen(file: Path):
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert not is_intact(file, "sft/step-1"), length
    file.write_bytes(whole + b"0")
    assert not is_intact(file, "sft/step-1")
