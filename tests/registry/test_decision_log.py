"""decisions.jsonl: what is no decision is named by every command and stays; a line is written whole or not at all."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from flows.checks.preflight import preflight
from flows.inspection.doctor import check_record
from flows.inspection.status import registry
from tasks.common.errors import InputError
from tasks.registry.export import folders
from tasks.registry.lineage import explain, sync, trace
from tasks.registry.lineage.report import write_report
from tasks.registry.promotion import champion, decision_log
from tasks.registry.promotion.decisions import past_decisions
from tasks.registry.promotion.human_evaluation import save_votes
from tasks.registry.promotion.opponent import refresh_opponent
from tasks.settings.params import load_params
from tests.registry.conftest import aliases

DECISION_LOG = Path("decisions.jsonl")
HASH, OTHER = "0" * 32 + ".dir", "1" * 32 + ".dir"
RECORD = {
    "policy": {"name": "p", "path": "models/ppo", "md5": HASH},
    "method": "ppo",
    "reward": {"md5": HASH},
    "data": {"md5": HASH},
    "gate": {"decision": "promote"},
    "opponent": {"name": "sft", "version": None, "policy": None},
    "keys": {"align": "a", "reward": "b"},
}
ROW: dict[str, Any] = {
    "id": "0123456789ab",
    "time": "2026-01-01T00:00:00+00:00",
    "who": "ada",
    "action": "promote",
    "policy": {"version": 1, "reward_version": 1, "md5": HASH, "record": RECORD},
    "previous": None,
    "reasons": [],
    "gate": {},
    "review": None,
    "git_commit": None,
}


def changed(**fields):
    return json.dumps(ROW | fields).encode()


def without(name):
    return json.dumps({key: value for key, value in ROW.items() if key != name}).encode()


DAMAGED = {
    "a list": b"[1, 2]",
    "null": b"null",
    "no JSON": b'{"id": "cut o',
    "empty": b"",
    "not UTF-8": b'{"id": "\xff"}',
    "UTF-16": json.dumps(ROW).encode("utf-16"),
    "NUL": b"\0\0\0\0",
    "half a pair": changed(who="\ud800"),
    "a number of 5,000 digits": b'{"id": ' + b"9" * 5000 + b"}",
    "nested deep": b"[" * 100_000,
    "a key twice": b'{"id": "1", "id": "2"}',
    "a mark of git": b"<<<<<<< HEAD",
    **{f"no {name}": without(name) for name in ROW if name != "git_commit"},
    "an action nobody knows": changed(action="delete"),
    "reasons that are one text": changed(reasons="good"),
    "a version that is a text": changed(policy=ROW["policy"] | {"version": "1"}),
    "version 0": changed(policy=ROW["policy"] | {"version": 0}),
    "version 10^12": changed(policy=ROW["policy"] | {"version": 10**12}),
    "a truth for a version": changed(policy=ROW["policy"] | {"version": True}),
    "no hash": changed(policy=ROW["policy"] | {"md5": "x' or name = 'y"}),
    "another content's record": changed(policy=ROW["policy"] | {"md5": OTHER}),
    "no record": changed(policy={"version": 1, "reward_version": 1, "md5": HASH}),
    "a previous that is a number": changed(previous=1),
    "half a review": changed(review={"by": "Ada"}),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_row_that_is_no_decision_is_named_and_stays(folder, line):
    content = changed(id="first") + b"\n" + line + b"\n" + changed(id="last") + b"\n"
    DECISION_LOG.write_bytes(content)
    with pytest.raises(InputError, match=r"^decisions\.jsonl row 2 is damaged: restore .* or delete that row \(.+\)$"):
        past_decisions()
    assert DECISION_LOG.read_bytes() == content


def test_a_line_longer_than_any_decision_is_not_read_to_its_end(folder, monkeypatch):
    monkeypatch.setattr(decision_log, "LONGEST_ROW", 10_000)
    DECISION_LOG.write_bytes(changed() + b"\n" + b"x" * 100_000)
    with pytest.raises(InputError, match="row 2 is damaged"):
        past_decisions()


def test_two_rows_of_one_id_are_both_named(folder):
    DECISION_LOG.write_bytes(changed() + b"\n" + changed(id="other") + b"\n" + changed(action="refuse") + b"\n")
    with pytest.raises(InputError, match=r"rows 1 and 3 have the same id 0123456789ab: run trueline merge"):
        past_decisions()


@pytest.mark.parametrize("last", [b"[1, 2]", b"a note", b'{"id": "1"}'], ids=["a list", "a note", "another object"])
def test_a_last_line_without_end_goes_only_where_a_kill_left_it(folder, last):
    DECISION_LOG.write_bytes(changed() + b"\n" + last)
    with pytest.raises(InputError, match="row 2 is damaged"):
        past_decisions()


def test_what_a_row_holds_besides_stays(folder):
    row = json.loads(changed(note="of a later release"))
    DECISION_LOG.write_text(json.dumps(row) + "\n")
    assert past_decisions() == [row]


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling"])
def test_a_record_that_is_no_file_is_reported(folder, kind):
    make = {
        "folder": DECISION_LOG.mkdir,
        "pipe": lambda: os.mkfifo(DECISION_LOG),
        "dangling": lambda: DECISION_LOG.symlink_to("gone"),
    }
    make[kind]()
    with pytest.raises(InputError, match=r"decisions\.jsonl is (not a file|a link to nothing): .*git"):
        past_decisions()


def test_every_command_names_the_row_and_none_acts(challenged, tmp_path):
    params, before = load_params(), (aliases(), Path("opponent.json").read_bytes())
    content = DECISION_LOG.read_bytes() + b"[1, 2]\n"
    DECISION_LOG.write_bytes(content)
    commands = {
        "run": preflight,
        "run without the flow": lambda: refresh_opponent(params),
        "promote": lambda: champion.promote(params),
        "register": lambda: champion.register(params),
        "approve": lambda: champion.approve(params, "2", "Ada", "Good."),
        "reject": lambda: champion.reject(params, "2", "Ada", "Bad."),
        "rollback": lambda: champion.rollback(params, "it insults people"),
        "why, chat": lambda: explain.why(params, "champion"),
        "history": lambda: explain.history(params),
        "trace": lambda: trace.trace(params, "source", "rows.jsonl"),
        "export": lambda: folders.export(params, "champion", tmp_path / "exported"),
        "sync": lambda: sync.sync(params),
        "report": lambda: write_report(params),
        "votes": lambda: save_votes(params, "key", {}, []),
    }
    for name, command in commands.items():
        with pytest.raises(InputError, match=r"decisions\.jsonl row 2 is damaged: restore the file from git"):
            pytest.fail(f"{name} gave {command()}")
    assert "decisions.jsonl row 2 is damaged" in registry(params)["error"]
    (finding,) = check_record()
    assert (finding.level, finding.found) == ("fail", "decisions.jsonl row 2 is damaged")
    assert finding.cure.startswith("restore the file from git, or delete that row")
    assert DECISION_LOG.read_bytes() == content
    DECISION_LOG.write_bytes(content.removesuffix(b"[1, 2]\n"))  # the cure
    assert (aliases(), Path("opponent.json").read_bytes()) == before


@pytest.mark.parametrize("before", [b"", changed() + b"\n", changed(), changed() + b'\n{"id": "cut o'])
def test_on_a_full_disk_nothing_of_a_line_stays(folder, monkeypatch, before):
    DECISION_LOG.write_bytes(before)
    write, room = os.write, [100]

    def as_far_as_there_is_room(number, content):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(number, content[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", as_far_as_there_is_room)
        with pytest.raises(
            InputError, match=r"could not be written \(No space left on device\), so nothing was decided"
        ):
            decision_log.append_row(DECISION_LOG, ROW | {"id": "new"})
    assert DECISION_LOG.read_bytes() == before.removesuffix(b'{"id": "cut o')
    decision_log.append_row(DECISION_LOG, ROW | {"id": "new"})
    assert [row["id"] for row in past_decisions()] == [*(["0123456789ab"] if before else []), "new"]


def test_a_line_that_could_not_be_read_again_is_not_written(folder):
    with pytest.raises(ValueError, match="version"):
        decision_log.append_row(DECISION_LOG, ROW | {"policy": ROW["policy"] | {"version": 0}})
    assert not DECISION_LOG.exists()
