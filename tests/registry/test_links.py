"""Outputs as hard links to DVC's cache, where its settings ask for them: one copy on the disk, and none is spoilt."""

import errno
import os
from pathlib import Path

import pytest

from tasks.registry.dvc_outputs import stages
from tasks.registry.export.folders import _restore, _write_card
from tasks.registry.export.mlflow_model import CARD
from tests.registry.conftest import change_figures, dvc, repro

SFT = Path("models/sft")
CONTENT = SFT / "content.txt"


@pytest.fixture
def linked(repository):
    """The pipeline with the setting that docs/operations.md names, after a run of sft."""
    dvc("config", "--local", "cache.type", "hardlink,copy", cwd=repository)
    change_figures(content=1)
    repro("sft")
    return repository


def objects():
    """The inodes and bytes of all that the cache holds."""
    return {path.stat().st_ino: path.read_bytes() for path in Path(".dvc/cache/files/md5").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_output_and_the_caches_object_are_one_file_that_the_next_run_replaces(linked):
    assert CONTENT.stat().st_ino in objects()
    assert not CONTENT.stat().st_mode & 0o222  # nobody writes into it by accident
    before = objects()
    change_figures(content=2)
    repro("sft")
    after = objects()
    assert CONTENT.stat().st_ino in {*after} - {*before}
    assert {inode: after[inode] for inode in before} == before


@pytest.mark.slow
def test_an_export_is_a_link_where_outputs_are_and_a_copy_across_file_systems(linked, monkeypatch, tmp_path):
    md5 = stages.output_hashes("sft")[SFT.as_posix()]
    _restore(md5, tmp_path / "near", "it")
    assert (tmp_path / "near/content.txt").stat().st_ino == CONTENT.stat().st_ino

    def elsewhere(*_names, **_options):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", elsewhere)
    _restore(md5, tmp_path / "far", "it")
    assert (tmp_path / "far/content.txt").stat().st_nlink == 1
    assert (tmp_path / "far/content.txt").read_bytes() == CONTENT.read_bytes()


def test_a_card_takes_the_place_of_a_linked_one(tmp_path):
    (tmp_path / "cached").write_text("the model's own")
    (tmp_path / "out").mkdir()
    os.link(tmp_path / "cached", tmp_path / "out" / CARD)
    _write_card(tmp_path / "out", "ours")
    assert (tmp_path / "out" / CARD).read_text() == "ours"
    assert (tmp_path / "cached").read_text() == "the model's own"
