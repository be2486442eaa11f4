"""Checksums of a folder tell every flipped bit, every cut and addition, and a whole folder of another name."""

from pathlib import Path

import pytest

from tasks.learning.training import checksums
from tasks.learning.training.checksums import CHECKSUMS, own_share_is_intact, write_checksums

CONTENT = bytes(range(256)) * 2
NAME = "sft/step-1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "weights").write_bytes(CONTENT)
    (tmp_path / "progress").write_bytes(CONTENT[::-1])
    write_checksums(tmp_path, NAME)
    return tmp_path


@pytest.mark.parametrize("chunk", [1 << 20, 64, 63])
def test_a_whole_folder_is_known_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch, chunk: int):
    monkeypatch.setattr(checksums, "CHUNK", chunk)
    assert own_share_is_intact(folder, NAME)
    assert not own_share_is_intact(folder, "sft/step-2")
    assert not own_share_is_intact(folder, "dpo/step-1")


@pytest.mark.parametrize("name", ["weights", CHECKSUMS])
def test_every_flipped_bit_is_seen(folder: Path, name: str):
    whole = (folder / name).read_bytes()
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        (folder / name).write_bytes(changed)
        # A space of the JSON text may become another one, which says the same.
        assert not own_share_is_intact(folder, NAME) or not changed[place : place + 1].strip(), place


@pytest.mark.parametrize("name", ["weights", CHECKSUMS])
def test_every_cut_and_addition_is_seen(folder: Path, name: str):
    whole = (folder / name).read_bytes()
    for length in range(len(whole) - 1):  # the last byte of the JSON text ends its line
        (folder / name).write_bytes(whole[:length])
        assert not own_share_is_intact(folder, NAME), length
    (folder / name).write_bytes(whole + b"0")
    assert not own_share_is_intact(folder, NAME)


def test_a_file_too_few_or_too_many_is_seen(folder: Path):
    (folder / "more").touch()
    assert not own_share_is_intact(folder, NAME)
    (folder / "more").unlink()
    assert own_share_is_intact(folder, NAME)
    (folder / "progress").unlink()
    assert not own_share_is_intact(folder, NAME)


def test_two_files_that_have_changed_places_are_seen(folder: Path):
    (folder / "weights").write_bytes(CONTENT[::-1])
    (folder / "progress").write_bytes(CONTENT)
    assert not own_share_is_intact(folder, NAME)
