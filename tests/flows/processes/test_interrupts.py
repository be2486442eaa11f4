import os
import signal

import pytest

from flows.processes.interrupts import report_interruption
from tasks.common.files import write_json
from tasks.stage import FAILURE_FILE, Failure


@pytest.fixture(autouse=True)
def _checkout(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_sigterm_unwinds_the_block_and_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    earlier, unwound = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as ended, report_interruption():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            unwound.append(True)

    assert ended.value.code == 143
    assert unwound
    assert capsys.readouterr().err == "trueline: interrupted; run again to continue\n"
    assert signal.getsignal(signal.SIGTERM) is earlier


def test_the_stage_that_was_interrupted_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    write_json(FAILURE_FILE, Failure("sft", "interrupted", "interrupted; run again to continue")._asdict())
    with pytest.raises(KeyboardInterrupt), report_interruption():
        raise KeyboardInterrupt

    assert capsys.readouterr().err == "trueline: interrupted in sft; run again to continue\n"


def test_another_error_is_for_others_to_tell(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="what"), report_interruption():
        raise ValueError("what?")

    assert capsys.readouterr().err == ""
