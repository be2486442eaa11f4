import json

import pytest

from tasks.common.errors import InputError
from tasks.evaluation.opponent import Opponent, read_opponent


def read(tmp_path, content):
    path = tmp_path / "opponent.json"
    path.write_text(json.dumps(content))
    return read_opponent(path)


def test_sft_where_there_is_no_champion(tmp_path):
    opponent = read(tmp_path, {"name": "sft", "version": None, "policy": None})
    assert opponent == Opponent("sft", None, None)
    assert str(opponent) == "SFT"


def test_a_champion_has_a_version_and_bytes(tmp_path):
    opponent = read(tmp_path, {"name": "champion", "version": 3, "policy": "ab.dir"})
    assert opponent == Opponent("champion", 3, "ab.dir")
    assert str(opponent) == "champion version 3"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"name": "somebody", "version": None, "policy": None},
        {"name": "sft", "version": 1, "policy": None},
        {"name": "champion", "version": None, "policy": "ab.dir"},
        {"name": "champion", "version": 3, "policy": None},
        {"name": "champion", "version": True, "policy": "ab.dir"},
    ],
)
def test_anything_else_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"opponent.json names no opponent: restore it"):
        read(tmp_path, content)


def test_a_file_that_cannot_be_read_is_named_with_its_cure(tmp_path):
    path = tmp_path / "opponent.json"
    with pytest.raises(InputError, match=r"opponent.json is missing or damaged: restore it from git"):
        read_opponent(path)
    path.write_text('{"name": "sf')
    with pytest.raises(InputError, match=r"opponent.json is missing or damaged: restore it from git"):
        read_opponent(path)
