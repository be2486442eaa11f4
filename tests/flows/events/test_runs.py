"""What is reported of runs and decisions, at a receiver on loopback."""

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest

from flows.events import reporting, runs
from flows.events.messages import gate_figures, link, of_decision
from flows.events.reporting import decisions_reported
from flows.events.runs import run_reported
from flows.pipeline import steps
from flows.pipeline.run import run_flow
from flows.processes.locks import one_flow_at_a_time
from flows.stages.last_run import last_run, recorded
from flows.stages.reproduce import StageError, StageRun
from tasks.common.errors import InputError
from tasks.common.progress import STATUS_FILES
from tasks.common.safe_text import ADDRESSES
from tasks.registry.promotion.decisions import Action, Decision
from tasks.stage import Failure
from tests.flows.events.conftest import Receiver, configure

GATE: dict[str, Any] = {
    "checks": [
        {"name": "win_rate", "figure": 0.5613, "threshold": 0.5, "verdict": "passed", "sentence": ""},
        {"name": "refusals", "figure": 0.01, "threshold": 0.05, "verdict": "passed", "sentence": ""},
        {"name": "kl", "figure": 31.5, "threshold": 30.0, "verdict": "failed", "sentence": ""},
        {"name": "ground_truth.rule", "figure": 0.7, "threshold": 0.5, "verdict": "passed", "sentence": ""},
        {"name": "repetition", "figure": None, "threshold": 0.2, "verdict": "failed", "sentence": ""},
    ]
}


def decision(action: Action, version: int, previous: int | None, **more: Any) -> Decision:
    def policy(number: int) -> Any:
        record = {"policy": {"name": "trueline-policy"}}
        return {"version": number, "reward_version": 1, "md5": f"m{number}", "record": record}

    made: Any = {
        "id": f"{action}{version}",
        "time": "2026-11-30T03:00:00+00:00",
        "who": "ada",
        "action": action,
        "policy": policy(version),
        "previous": policy(previous) if previous else None,
        "reasons": ["it forgot the orders"],
        "gate": GATE,
        "review": None,
        "git_commit": None,
    }
    return cast("Decision", made | more)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Decision]:
    """The decision log."""
    decisions = [decision("promote", 3, None)]
    monkeypatch.setattr(reporting, "past_decisions", lambda: list(decisions))
    return decisions


def run(error: BaseException | None = None) -> None:
    with run_reported(), one_flow_at_a_time(), recorded() as recording:
        recording.stages.append(StageRun("sft", "ran", 65.0, ""))
        if error:
            raise error
        recording.promotion = {"promoted": True, "held": False, "version": 3, "champion": 3, "reasons": []}


def test_a_message_has_the_verdict_three_figures_and_a_link(
    checkout: Path, receiver: Receiver, log: list[Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:pass@mlflow.example.com:5000")
    with decisions_reported():
        log.append(decision("promote", 4, 3))

    assert receiver.titles == [f"Trueline promoted: {checkout.name} on {os.uname().nodename}"]
    assert receiver.texts == [
        "Version 4 of trueline-policy was promoted; champion before: version 3.\n"
        "- kl 31.500, threshold 30: failed\n"
        "- win_rate 0.561, threshold 0.5: passed\n"
        "- ground_truth.rule 0.700, threshold 0.5: passed\n"
        "http://mlflow.example.com:5000/#/models/trueline-policy/versions/4"
    ]


@pytest.mark.parametrize(
    ("made", "title", "verdict"),
    [
        (decision("refuse", 4, 3), "refused", "Version 4 of trueline-policy was refused; champion: version 3."),
        (
            decision("refuse", 4, 3, review={"by": "eve", "reason": "no"}),
            "refused",
            "Version 4 of trueline-policy was refused by eve; champion: version 3.\n- reason: it forgot the orders",
        ),
        (decision("hold", 4, 3), "held", "Version 4 of trueline-policy awaits approval; champion: version 3."),
        (
            decision("rollback", 2, 3),
            "rolled back",
            "Version 2 of trueline-policy is champion again, in place of version 3.\n- reason: it forgot the orders",
        ),
    ],
)
def test_each_decision_is_reported(
    checkout: Path, receiver: Receiver, log: list[Decision], made: Decision, title: str, verdict: str
) -> None:
    with decisions_reported():
        log.append(made)

    assert receiver.titles[0].startswith(f"Trueline {title}: ")
    assert receiver.texts[0].startswith(verdict)
    assert receiver.texts[0].count("\n- ") == 3


def test_a_decision_is_reported_though_the_command_fails_after_it(
    checkout: Path, receiver: Receiver, log: list[Decision]
) -> None:
    with pytest.raises(RuntimeError), decisions_reported():
        log.append(decision("promote", 4, 3))
        raise RuntimeError("MLflow failed halfway")

    assert len(receiver.received) == 1


def test_an_unchanged_run_and_an_interrupted_one_are_no_news(
    checkout: Path, receiver: Receiver, log: list[Decision]
) -> None:
    run()
    with pytest.raises(KeyboardInterrupt):
        run(KeyboardInterrupt())

    assert receiver.received == []


def test_a_failure_then_the_first_success(checkout: Path, receiver: Receiver, log: list[Decision]) -> None:
    for error in (InputError("fix it"), StageError(Failure("sft", "bug", "it broke"))):
        with pytest.raises(type(error)):
            run(error)
    run()
    run()

    assert [title.partition(":")[0] for title in receiver.titles] == ["Trueline failed"] * 2 + ["Trueline recovered"]
    assert receiver.texts[0].startswith("The run failed: fix it\n- started: ")
    assert "\n- champion: version 3\n" in receiver.texts[0]
    assert receiver.texts[1].startswith("The run failed in sft: sft failed: it broke")
    assert receiver.texts[2].startswith("A run succeeded again; before: input since 20")
    assert "- stages took: 0:01:05" in receiver.texts[2]


def test_a_run_that_was_killed_is_reported_by_the_next(checkout: Path, receiver: Receiver, log: list[Decision]) -> None:
    kill = (
        "import os; from flows.processes.locks import one_flow_at_a_time\n"
        "with one_flow_at_a_time(): os.kill(os.getpid(), 9)"
    )  # fmt: skip
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", kill], env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    run()

    assert [title.partition(":")[0] for title in receiver.titles] == ["Trueline failed", "Trueline recovered"]
    assert receiver.texts[0].startswith("The run crashed: its process ")


def test_what_is_found_before_prefect_is_loaded_is_reported(
    checkout: Path, receiver: Receiver, log: list[Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of a cron job names a server: nobody reads what it prints."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    for faulty in ("a setting is wrong", None):

        def preflight(fault: str | None = faulty) -> None:
            if fault:
                raise InputError(fault)

        monkeypatch.setattr(steps, "preflight", preflight)
        with pytest.raises(InputError):
            run_flow()

    assert [title.partition(":")[0] for title in receiver.titles] == ["Trueline failed"] * 2
    assert "a setting is wrong" in receiver.texts[0]
    assert "no Prefect server answers at http://127.0.0.1:9/api" in receiver.texts[1]
    assert (found := last_run()) is not None
    assert found.outcome == "input"


def test_a_second_flow_that_is_refused_is_no_failure(checkout: Path, receiver: Receiver, log: list[Decision]) -> None:
    with one_flow_at_a_time(), pytest.raises(InputError, match="a flow runs"):
        run()

    assert receiver.received == []


def test_a_standstill_is_reported_once_and_the_end_of_it(
    checkout: Path, receiver: Receiver, log: list[Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(notify={"stuck_minutes": 1})
    monkeypatch.setattr(runs, "LOOKS", 6000)  # every hundredth of a second
    STATUS_FILES.mkdir(parents=True)
    status = STATUS_FILES / "sft.json"
    progress = {"pid": os.getpid(), "stage": "sft", "doing": "sft", "done": 5, "total": 9, "unit": "step"}
    with run_reported(), one_flow_at_a_time(), recorded():
        status.write_text(json.dumps(progress))
        time.sleep(0.1)
        assert receiver.received == []
        monkeypatch.setattr(runs, "seconds_since_progress", lambda: 61.4)
        deadline = time.monotonic() + 10
        while not receiver.received and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        status.unlink()

    assert [title.partition(":")[0] for title in receiver.titles] == ["Trueline stuck", "Trueline recovered"]
    assert receiver.texts[0].startswith(
        "The run stands still: sft has made no progress for 0:01:01.\n- progress: sft 5 of 9 steps\n- run started: "
    )


def test_only_the_events_of_the_setting_are_reported(checkout: Path, receiver: Receiver, log: list[Decision]) -> None:
    configure(notify={"events": ["failed"]})
    with decisions_reported():
        log.append(decision("promote", 4, 3))

    assert receiver.received == []


def test_settings_that_cannot_be_read_are_reported(checkout: Path, receiver: Receiver, log: list[Decision]) -> None:
    Path("params.yaml").write_text("seed: many")
    with pytest.raises(InputError):
        run(InputError("params.yaml: seed is 'many'"))

    assert receiver.texts[0].startswith("The run failed: params.yaml: seed is 'many'")


def test_without_addresses_nothing_waits(
    checkout: Path, log: list[Decision], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(ADDRESSES)
    with caplog.at_level(logging.WARNING), decisions_reported():
        log.append(decision("promote", 4, 3))

    assert not Path(".trueline/notifications").exists()
    assert caplog.records == []


def test_a_receiver_that_is_down_costs_a_warning(
    checkout: Path, receiver: Receiver, log: list[Decision], caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 503
    with caplog.at_level(logging.WARNING, "flows"), decisions_reported():
        log.append(decision("promote", 4, 3))
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("flows")]

    assert len(messages) == 1
    assert messages[0].startswith("address 1 (json) takes no notification (")
    assert messages[0].endswith("it waits for the next run or trueline notify")
    receiver.status = 200
    run()
    deadline = time.monotonic() + 5
    while not receiver.received and time.monotonic() < deadline:  # a thread delivers it while the run goes on
        time.sleep(0.01)
    assert [title.partition(":")[0] for title in receiver.titles] == ["Trueline promoted"]


def test_a_decision_of_an_earlier_release_has_no_checks(checkout: Path) -> None:
    assert gate_figures({}) == []
    assert of_decision(decision("promote", 1, None, gate={})).figures == []


def test_the_link_is_the_report_where_there_is_no_server(checkout: Path) -> None:
    assert link().startswith("trueline status on ")
    Path(".trueline").mkdir()
    Path(".trueline/report.html").touch()
    assert link("trueline-policy", 3).startswith(f"{checkout}/.trueline/report.html on ")


def test_a_fault_of_reporting_fails_no_run(
    checkout: Path, log: list[Decision], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_events: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(reporting, "report", fail)
    with decisions_reported():
        log.append(decision("promote", 4, 3))

    assert [record.getMessage() for record in caplog.records] == ["an event could not be reported"]
