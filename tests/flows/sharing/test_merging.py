"""Merging where it cannot begin; tests/registry/test_sharing.py has two machines do it."""

from pathlib import Path

import pytest

from flows.sharing.git import GitError
from flows.sharing.merging import merge


def test_without_git_there_is_no_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GitError, match="git is not installed: install it, or put it on PATH"):
        merge()
