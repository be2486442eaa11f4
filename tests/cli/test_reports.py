"""What the commands print, for people and as JSON."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flows import gc as garbage
from flows.inspection import status as status_module
from flows.inspection.doctor import Finding
from flows.processes.locks import one_flow_at_a_time
from tasks.common.progress import StageProgress
from tasks.registry.backup import load as loading
from tasks.registry.backup import save as saving
from tasks.registry.lineage import explain, sync
from tasks.registry.lineage import report as reporting
from tasks.registry.promotion import champion
from tests.cli.conftest import returning

SAVED = {
    "folder": "saved",
    "made": "2026-11-30T12:00:00+00:00",
    "database": "server",
    "files": 5,
    "bytes": 2048,
    "aliases": {"champion": 3},
    "notes": ["MLflow's database is behind http://server: back it up where that runs."],
    "unreachable": [],
}
RESTORED = {
    **{name: SAVED[name] for name in ("folder", "made", "aliases", "unreachable")},
    "restored": ["mlruns", "the tracking database"],
    "record": "newer here",
    "replaced": ".trueline/replaced/now",
    "notes": [],
    "fetched": False,
}
GARBAGE = {
    "deleted": False,
    "days": 30,
    "places": [{"place": "DVC cache", "objects": 3, "bytes": 2_500_000, "young": 1}],
    "versions": [
        {"model": "policy", "version": 1, "reasons": [], "weights_deleted": None},
        {"model": "policy", "version": 2, "reasons": ["champion", "young"], "weights_deleted": None},
    ],
    "aliases": [["policy", "previous"]],
    "named_by": ["dvc.lock here", "HEAD"],
    "lacking": ["0af1.dir"],
    "left_alone": "DVC remote web is reached over HTTP",
}
VERDICT = {"promoted": True, "held": False, "version": 2, "champion": 2, "reasons": ["The win rate is above 50%."]}


@pytest.mark.parametrize(
    ("command", "owner", "name", "content"),
    [
        (["why", "3"], explain, "why", {"version": 3, "data": {"md5": "0af1.dir"}, "decisions": [{"id": "a"}]}),
        (["history"], explain, "history", []),
        (["sync"], sync, "sync", {"stages": [{"stage": "sft", "status": "ran", "run_id": "1"}], "alarms": []}),
        (["report"], reporting, "write_report", {"path": "report.html", "address": "file:///r.html", "run_id": "1"}),
        (["promote"], champion, "promote", VERDICT),
        (["rollback", "--reason", "worse"], champion, "rollback", VERDICT),
        (["approve", "3", "--by", "Ada", "--reason", "good"], champion, "approve", VERDICT),
        (["backup", "saved"], saving, "backup", SAVED),
        (["restore", "saved"], loading, "restore", RESTORED),
        (["gc", "--keep", "champion,3"], garbage, "collect_garbage", GARBAGE),
        (["reject", "3", "--by", "Ada", "--reason", "worse"], champion, "reject", VERDICT),
    ],
)
def test_json_is_the_data_and_nothing_else(
    trueline, monkeypatch: pytest.MonkeyPatch, command: list[str], owner: Any, name: str, content: Any
) -> None:
    monkeypatch.setattr(owner, name, returning(content))

    code, out, _ = trueline(*command, "--json")
    assert (code, json.loads(out)) == (0, content)

    code, out, _ = trueline(*command)
    assert (code, bool(out)) == (0, True)


def test_status_for_people_and_machines(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"prepare": "up to date", "sft": "changed"}
    monkeypatch.setattr(status_module, "stage_states", returning(states))
    (Path(".trueline")).mkdir()
    Path(".trueline/failure.json").write_text(json.dumps({"stage": "sft", "kind": "input", "message": "fix it"}))

    code, out, _ = trueline("status", "--json")
    assert code == 0
    assert json.loads(out) == {
        "stages": states,
        "running": [],
        "registry": {"champion": None, "challenger": None, "awaiting": [], "error": None},
        "flow": None,
        "failure": {"stage": "sft", "kind": "input", "message": "fix it"},
        "untrained": [],
        "freshness": None,
    }
    assert not Path("mlflow.db").exists()  # looking makes nothing

    out = trueline("status")[1]
    assert "sft      changed" in out
    assert "sft: fix it" in out


def test_status_while_a_flow_runs_leaves_dvc_alone(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_module, "plan", lambda: ["prepare"])
    with one_flow_at_a_time():
        status = json.loads(trueline("status", "--json")[1])

    assert status["stages"] == {"prepare": "busy"}
    assert status["flow"]["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("note", "line"),
    [
        (
            StageProgress(1, "sft", "sft", 120, 4800, "step", 61.4),
            "running     sft: 120 of 4,800 steps, about 0:01:01 left",
        ),
        (StageProgress(1, "evaluate", "evaluate: sft", 0, 36, "answer"), "running     evaluate: sft: 0 of 36 answers"),
        (StageProgress(1, "prepare"), "running     prepare"),
    ],
)
def test_status_tells_how_far_a_stage_is(
    trueline, monkeypatch: pytest.MonkeyPatch, note: StageProgress, line: str
) -> None:
    monkeypatch.setattr(status_module, "plan", lambda: ["prepare"])
    monkeypatch.setattr(status_module, "running", lambda: [note])

    assert line in trueline("status")[1].splitlines()
    status = json.loads(trueline("status", "--json")[1])
    assert status["running"] == [note._asdict()]
    assert status["stages"] == {"prepare": "busy"}  # whether or not a flow runs it


def test_a_refused_promotion_exits_with_1(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {"promoted": False, "held": False, "version": 3, "champion": 2, "reasons": ["The gate says reject."]}
    monkeypatch.setattr(champion, "promote", returning(refused))

    code, out, _ = trueline("promote")

    assert code == 1
    assert "Version 3 was not promoted; champion: 2.\n  The gate says reject." in out


def test_what_awaits_approval_says_how(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"promoted": False, "held": True, "version": 3, "champion": None, "reasons": ["All is well."]}
    monkeypatch.setattr(champion, "promote", returning(held))

    code, out, _ = trueline("promote")

    assert code == 1
    assert out == (
        "Version 3 awaits approval; champion: none.\n  All is well.\n"
        "To decide: trueline approve 3 --by NAME --reason WHY, or trueline reject 3 --by NAME --reason WHY\n"
    )


def test_history_names_the_person_who_decided(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"time": "2026-11-22T03:00:00+00:00", "who": "cron", "policy": {"version": 3}}
    decisions = [
        common | {"action": "hold", "review": None, "reasons": ["All is well."]},
        common | {"action": "promote", "review": {"by": "Ada", "reason": "good"}, "reasons": ["good"]},
    ]
    monkeypatch.setattr(explain, "history", returning(decisions))

    _, held, approved = trueline("history")[1].splitlines()

    assert held.split()[:5] == ["2026-11-22", "03:00", "cron", "hold", "3"]
    assert approved.split()[2:5] == ["Ada", "promote", "3"]


def test_export_says_what_lies_where(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def export(_params: Any, version: str, folder: Path, *, as_adapter: bool) -> dict[str, Any]:
        asked.append((version, folder, as_adapter))
        return {"model": "ours", "version": 3, "md5": "x.dir", "folder": str(folder), "files": ["README.md", "a"]}

    monkeypatch.setattr("tasks.registry.export.folders.export", export)

    assert trueline("export", "champion", "out") == (0, "ours version 3 in out:\n  README.md, a\n", "")
    assert json.loads(trueline("export", "3", "out", "--adapter", "--json")[1])["files"] == ["README.md", "a"]
    assert asked == [("champion", Path("out"), False), ("3", Path("out"), True)]


def test_export_of_a_reward_model_has_no_adapter(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = {"model": "rewards", "version": 2, "md5": "x.dir", "folder": "out", "files": ["README.md"]}
    monkeypatch.setattr("tasks.registry.export.folders.export_reward", returning(exported))

    assert trueline("export", "3", "out", "--reward") == (0, "rewards version 2 in out:\n  README.md\n", "")
    sentence = "trueline: reward models are exported whole: give --adapter or --reward, not both\n"
    assert trueline("export", "3", "out", "--reward", "--adapter") == (2, "", sentence)


def test_an_export_that_cannot_be_is_one_sentence(trueline, checkout: Path) -> None:
    (checkout / "mine").touch()

    code, out, err = trueline("export", "champion", ".")

    assert (code, out, err) == (2, "", "trueline: . is not an empty folder: name another, or empty it first\n")


def test_an_alarm_of_the_lineage_exits_with_1(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "sync", returning({"stages": [], "alarms": ["sft is not deterministic"]}))

    code, out, _ = trueline("sync")

    assert code == 1
    assert "Alarm: sft is not deterministic" in out


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_exits_with_1_where_something_fails(
    trueline, monkeypatch: pytest.MonkeyPatch, level: Any, code: int
) -> None:
    monkeypatch.setattr("flows.inspection.doctor.examine", lambda: [Finding("disk", level, "0.1 GB free", "free some")])

    assert trueline("doctor")[0] == code
    assert json.loads(trueline("doctor", "--json")[1]) == [
        {"check": "disk", "level": level, "found": "0.1 GB free", "cure": "free some"}
    ]


def test_doctor_shows_a_row_instead_of_the_checks(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "kind": "prompts",
        "split": "test",
        "source": "a.jsonl",
        "row": 1,
        "quarantined": [],
        "found": {},
        "truncated": {},
        "parts": [],
    }
    monkeypatch.setattr("flows.inspection.rows.examine_row", lambda row_id: [row | {"id": row_id}])
    assert trueline("doctor", "--row", "ab")[:2] == (0, "prompts, test: a.jsonl row 1\n")
    assert json.loads(trueline("doctor", "--row", "ab", "--json")[1]) == [row | {"id": "ab"}]


def test_configure_says_what_changed(trueline) -> None:
    assert trueline("configure", "align.method=dpo")[1] == "align.method: ppo → dpo\nalign.stage: ppo → dpo\n"
    assert trueline("configure", "align.method=dpo")[1] == "params.yaml has these settings already.\n"
    both = trueline(
        "configure", "evaluate.llm_judge={url: http://a/v1, model: m, prompts: 9}", "registry.approval=true"
    )
    assert both[1].splitlines() == [
        'evaluate.llm_judge: null → {"url": "http://a/v1", "model": "m", "prompts": 9}',
        "registry.approval: false → true",
    ]
    changes = json.loads(trueline("configure", "seed=8", "--json")[1])
    assert changes == [{"key": "seed", "before": 7, "after": 8}]


def test_gc_says_what_goes_what_stays_and_how_to_delete(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "collect_garbage", returning(GARBAGE))
    lines = [" ".join(line.split()) for line in trueline("gc")[1].splitlines()]
    assert lines == [
        "version stays because of",
        "policy 1 nothing: its weights would go",
        "policy 2 champion, young",
        "Also kept: what dvc.lock here, HEAD name.",
        "",
        "place would go size under 30 days, stay",
        "DVC cache 3 2.5 MB 1",
        "The alias previous of policy would be given up: --keep does not name it.",
        "0af1.dir must stay, and neither DVC's cache nor its remote has it.",
        "DVC remote web is reached over HTTP.",
        "Nothing has been deleted. To delete: the same command with --yes",
    ]


@pytest.mark.parametrize(
    ("command", "owner", "content", "first"),
    [
        (
            "backup",
            saving,
            SAVED,
            [
                "saved is complete (5 files, 2.0 kB, database: server).",
                "MLflow's database is behind http://server: back it up where that runs.",
            ],
        ),
        (
            "restore",
            loading,
            RESTORED,
            [
                "Restored from 2026-11-30T12:00:00+00:00: mlruns, the tracking database.",
                "The record here has more decisions than the backup, so it stays, with its settings.",
                "What was replaced is in .trueline/replaced/now.",
            ],
        ),
    ],
    ids=["backup", "restore"],
)
def test_what_cannot_be_fetched_is_named_with_exit_code_1(
    trueline, monkeypatch: pytest.MonkeyPatch, command: str, owner: Any, content: dict[str, Any], first: list[str]
) -> None:
    monkeypatch.setattr(owner, command, returning(content | {"unreachable": ["the policy of champion is not there"]}))
    code, out, _ = trueline(command, "saved")
    assert code == 1
    lines = out.splitlines()
    assert lines[: len(first)] == first
    assert lines[len(first) : len(first) + 3] == [
        "Missing: the policy of champion is not there.",
        "To send what is missing, where it lies: trueline backup --push FOLDER",
        "Aliases: champion (version 3); not all that they reach can be fetched.",
    ]
