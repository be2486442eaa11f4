import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from flows import chat as chat_module
from flows import cli
from flows import status as status_module
from flows.doctor import Finding
from flows.locks import one_flow_at_a_time
from flows.people import ImportedAnnotationSheets
from tasks.common.errors import InputError
from tasks.common.progress import StageProgress
from tasks.registry.lineage import explain, sync
from tasks.registry.lineage import report as reporting
from tasks.registry.promotion import champion
from tests.conftest import EXAMPLE

ROOT = Path(__file__).parents[1]
HELP = """
import sys
from flows.cli import main
sys.argv = ["trueline", *sys.argv[1:], "--help"]
try:
    main()
except SystemExit:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""
VERDICT = {"promoted": True, "held": False, "version": 2, "champion": 2, "reasons": ["The win rate is above 50%."]}


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped settings and the built-in example's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (tmp_path / EXAMPLE).parent.mkdir(parents=True)
    (tmp_path / EXAMPLE).touch()
    (tmp_path / "exclude.txt").touch()
    return tmp_path


@pytest.fixture
def trueline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trueline", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


def returning(value: Any):
    return lambda *_arguments, **_options: value


def raising(error: Exception):
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise error

    return fail


# --- Help


def test_help_takes_less_than_a_second() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert "rollback" in done.stdout
    slow = {"torch", "transformers", "prefect", "mlflow", "dvc", "pandas", "datasets", "great_expectations", "pydantic"}
    assert not slow & set(done.stderr.split())
    # CPU time, because a machine may be busy. It takes 0.2 s.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(cli.app)
    return {name: command for name, command in group.commands.items() if not command.hidden}


def test_every_command_stands_in_a_panel() -> None:
    panels = {name: command.rich_help_panel for name, command in commands().items()}

    assert {name: panel for name, panel in panels.items() if panel not in cli.PANELS} == {}
    assert list(dict.fromkeys(panels.values())) == list(cli.PANELS)  # in this order, none empty


def test_every_command_says_in_one_line_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    shown = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name, command in commands().items():
        sentence = command.help.partition("\n\n")[0]
        assert any(line.split()[1:2] == [name] and sentence in line for line in shown.splitlines()), name


@pytest.mark.parametrize("old", ["sheet", "votes"])
def test_a_command_that_moved_to_a_group_is_still_there(trueline, old: str) -> None:
    group: Any = typer.main.get_command(cli.app)

    assert group.commands[old].hidden
    assert trueline(old, "--help")[0] == 0


# --- What a user must fix


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("base.source", "base.source is nowhere, which does not exist: trueline configure base.source=PATH fixes it"),
        ("prepare.prompts.source", "prepare.prompts.source is nowhere, which does not exist"),
    ],
)
def test_run_with_an_absent_source(trueline, key: str, cure: str) -> None:
    assert trueline("configure", f"{key}=nowhere")[0] == 0

    code, out, err = trueline("run")

    assert (code, out) == (2, "")
    assert err.startswith("trueline: params.yaml: ")
    assert cure in err
    assert err.count("\n") == 1


def test_run_with_bad_settings(trueline, checkout: Path) -> None:
    (checkout / "params.yaml").write_text("seed: 7\n")

    code, _, err = trueline("run")

    assert code == 2
    assert err.startswith("trueline: params.yaml: dpo is missing: add it")


def test_run_with_nothing_to_fetch_from(trueline) -> None:
    assert trueline("run", "--pull", "--json") == (
        2,
        "",
        "trueline: DVC has no default remote to fetch from: name one (dvc remote add -d NAME ADDRESS)\n",
    )


def test_run_while_another_runs(trueline) -> None:
    with one_flow_at_a_time():
        code, out, err = trueline("run", "--json")

    assert (code, out) == (2, "")
    assert f"a flow runs in this checkout already: process {os.getpid()} on " in err


@pytest.mark.parametrize("command", [["why", "champion"], ["sync"], ["promote"], ["rollback", "--reason", "worse"]])
def test_an_input_error_is_one_sentence(trueline, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    for module, name in ((explain, "why"), (sync, "sync"), (champion, "promote"), (champion, "rollback")):
        monkeypatch.setattr(module, name, raising(InputError("MLflow is away: start it")))

    assert trueline(*command, "--json") == (2, "", "trueline: MLflow is away: start it\n")


def test_no_permission_is_one_sentence(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "history", raising(PermissionError(13, "denied", "decisions.jsonl")))

    code, _, err = trueline("history")

    assert (code, err) == (2, "trueline: no permission for decisions.jsonl: grant it or run as its owner\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "history", raising(KeyError("a bug")))
    monkeypatch.setattr(sys, "argv", ["trueline", "history"])

    with pytest.raises(KeyError):
        cli.main()


def test_rollback_needs_a_reason(trueline) -> None:
    code, _, err = trueline("rollback")

    assert code == 2
    assert "--reason" in err


# --- Reports


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


def traced(**answers: Any) -> dict[str, Any]:
    no = {"reward_version": 1, "promoted": False, "policy": False, "reward": False, "stages": [], "rows": {}}
    return {"version": 1, "quarantined": 0, "unattributed": None, **no, **answers}


def test_a_trace_for_people_and_machines(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"prompts": {"train": 1}}
    found = {
        "what": "row", "name": "a1", "in_any": True,
        "versions": [
            traced(policy=True, stages=["ppo"], rows=rows, quarantined=2),
            traced(version=2, promoted=True, policy=None, reward=None, rows=None, quarantined=None),
        ],
    }  # fmt: skip
    monkeypatch.setattr("tasks.registry.lineage.trace.trace", returning(found))

    assert json.loads(trueline("trace", "--row", "a1", "--json")[1]) == found | {"excluded": None}
    _, first, second, why = trueline("trace", "--row", "a1")[1].splitlines()
    words = "1 yes 1: no ppo prompts train 1, quarantine 2"
    assert " ".join(first.split()) == words
    assert " ".join(second.split()) == "2 (was champion) unknown 1: unknown unknown"
    assert why.startswith("unknown: DVC's cache lacks the data of that version: run dvc fetch")


def test_a_trace_of_an_annotator_says_what_names_nobody(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"preferences": {"validation": 4}}
    found = {
        "what": "annotator", "name": "ann", "in_any": True,
        "versions": [
            traced(policy=None, reward=None, unattributed=36),
            traced(version=2, stages=["held_out_reward"], rows=rows, unattributed=0),
        ],
    }  # fmt: skip
    monkeypatch.setattr("tasks.registry.lineage.trace.trace", returning(found))

    assert json.loads(trueline("trace", "--annotator", "ann", "--json")[1]) == found | {"excluded": None}
    _, first, second, *why = trueline("trace", "--annotator", "ann")[1].splitlines()
    assert " ".join(first.split()) == "1 unknown 1: unknown no annotator 36"
    assert " ".join(second.split()) == "2 no 1: no held_out_reward preferences validation 4"
    assert " ".join(why).startswith("no annotator: rows that were learned from but name nobody")


def test_a_trace_that_finds_nothing_doubts_the_name(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"what": "source", "name": "p.json", "in_any": False, "versions": [traced()]}
    monkeypatch.setattr("tasks.registry.lineage.trace.trace", returning(found))

    assert "No data that could be read hold the source p.json" in trueline("trace", "--source", "p.json")[1]


def test_an_exclusion_says_what_runs_again(trueline, monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    found = {"what": "row", "name": "a1", "in_any": True, "versions": [traced()]}
    monkeypatch.setattr("tasks.registry.lineage.trace.trace", returning(found))
    monkeypatch.setattr("tasks.registry.lineage.trace.stages_after", returning(["prepare", "validate"]))

    out = trueline("trace", "--row", "a1", "--exclude")[1]

    assert out.endswith("exclude.txt names it now. Nothing has run yet:\ntrueline run goes through prepare, validate\n")
    assert (checkout / "exclude.txt").read_text() == "row a1\n"
    assert json.loads(trueline("trace", "--row", "a1", "--exclude", "--json")[1])["excluded"]["added"] is False
    trueline("trace", "--annotator", "a1", "--exclude")
    assert (checkout / "exclude.txt").read_text() == "row a1\nannotator a1\n"


@pytest.mark.parametrize(
    "options", [[], ["--row", "a", "--source", "b"], ["--row", "a", "--annotator", "b"], ["--annotator", ""]]
)
def test_a_trace_starts_from_one_thing(trueline, options: list[str]) -> None:
    sentence = "trueline: a trace starts from one thing: give --row ID, --source NAME or --annotator NAME\n"
    assert trueline("trace", *options) == (2, "", sentence)


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


ANNOTATION_SHEET = {"file": "s.csv", "prompts": 50, "different_answers": 1200, "same_answers": 9}
WON = {"value": 0.64, "low": 0.57, "high": 0.71, "ties": 0.1, "wins": 29, "losses": 16, "sign_test": 0.0725}
FIGURES: dict[str, Any] = {
    "prompts": 50, "same_answers": 9, "votes": 80, "annotators": {"ann": 50, "[ben]": 30},
    "alpha": 0.5432, "kappa": None, "left_preferred": 0.512,
    "vs_opponent": WON | {"conclusion": "inconclusive", "prompts_needed": 1090}, "confidence": 0.95,
}  # fmt: skip


def test_a_sheet_says_what_it_holds_and_what_to_do(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def write_annotation_sheet(path: Path, prompts: int | None) -> dict[str, Any]:
        asked.append((path, prompts))
        return ANNOTATION_SHEET

    monkeypatch.setattr("flows.people.write_annotation_sheet", write_annotation_sheet)

    out = trueline("label", "sheet", "s.csv", "--prompts", "50")[1]
    assert out.startswith(
        "s.csv: 50 of the 1,200 prompts with two different answers; 9 more have the same answer twice."
    )
    assert json.loads(trueline("sheet", "s.csv", "--json")[1]) == ANNOTATION_SHEET
    assert asked == [(Path("s.csv"), 50), (Path("s.csv"), None)]
    assert trueline("sheet", "s.csv", "--prompts", "0")[0] == 2


def test_votes_for_people_and_machines(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Any] = []

    def keep(_params: Any, _key: str, figures: Any, votes: Any) -> str:
        noted.append((figures, votes))
        return "r1"

    monkeypatch.setattr(
        "flows.people.read_annotation_sheets",
        lambda paths: ImportedAnnotationSheets("key", FIGURES, [{"files": len(paths)}]),
    )
    monkeypatch.setattr("tasks.registry.promotion.human_evaluation.save_votes", keep)

    assert trueline("label", "import", "a.csv", "b.csv")[1].splitlines() == [
        "win rate    0.640 [0.570, 0.710] over the opponent: inconclusive; 1,090 prompts would decide it",
        "prompts     50: 29 won, 16 lost; sign test p 0.0725",
        "not asked   9 prompts with the same answer twice",
        "votes       80: ann 50, [ben] 30",
        "agreement   Krippendorff's alpha 0.54, Cohen's kappa —",
        "left        preferred in 0.51 of the choices; 0.5 without a bias",
        "MLflow      run r1; trueline report shows it on the page",
    ]
    assert json.loads(trueline("votes", "a.csv", "--json")[1]) == FIGURES | {"run_id": "r1"}
    assert noted == [(FIGURES, [{"files": 2}]), (FIGURES, [{"files": 1}])]


def test_votes_are_shown_where_mlflow_is_away(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.people.read_annotation_sheets", returning(ImportedAnnotationSheets("key", FIGURES, [])))
    monkeypatch.setattr(
        "tasks.registry.promotion.human_evaluation.save_votes", raising(InputError("MLflow is away: start it"))
    )

    code, out, err = trueline("votes", "a.csv", "--json")

    assert (code, err) == (2, "trueline: MLflow is away: start it\n")
    assert json.loads(out) == FIGURES | {"run_id": None}
    assert "MLflow" not in trueline("votes", "a.csv")[1]


def test_an_alarm_of_the_lineage_exits_with_1(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "sync", returning({"stages": [], "alarms": ["sft is not deterministic"]}))

    code, out, _ = trueline("sync")

    assert code == 1
    assert "Alarm: sft is not deterministic" in out


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_exits_with_1_where_something_fails(
    trueline, monkeypatch: pytest.MonkeyPatch, level: Any, code: int
) -> None:
    monkeypatch.setattr("flows.doctor.examine", lambda: [Finding("disk", level, "0.1 GB free", "free some")])

    assert trueline("doctor")[0] == code
    assert json.loads(trueline("doctor", "--json")[1]) == [
        {"check": "disk", "level": level, "found": "0.1 GB free", "cure": "free some"}
    ]


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


# --- Chat


class Parrot:
    """Stands in for a conversation with a model."""

    messages: list[Any]

    def ask(self, text: str) -> str:
        if text == "long":
            raise InputError("the conversation is longer than the context")
        return text.upper()


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "begin", returning(Parrot()))
    Path("models/sft").mkdir(parents=True)


def test_one_message(trueline, parrot: None) -> None:
    assert trueline("chat", "--stage", "sft", "hello") == (0, "HELLO\n", "")


def test_piped_messages(trueline, parrot: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\nagain\n/exit\nunheard\n"))

    assert trueline("chat", "--stage", "sft") == (0, "HELLO\nAGAIN\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--stage", "sft", "long"], "the conversation is longer than the context"),
        (["--stage", "reward", "hello"], "reward has no model to talk to: choose one of base, sft, dpo, kto, ppo"),
        (["--stage", "ppo", "hello"], "models/ppo does not exist"),
        (["--stage", "sft", "--version", "3", "hello"], "--stage and --version name two models"),
    ],
)
def test_chat_that_cannot_be(trueline, parrot: None, arguments: list[str], sentence: str) -> None:
    code, out, err = trueline("chat", *arguments)

    assert (code, out) == (2, "")
    assert sentence in err
