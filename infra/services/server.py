"""One server process: started, waited for, suspended and ended with all of its children."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from tasks.common.children import end_group
from tasks.common.errors import InputError

STARTUP_SECONDS = 240.0
MARK = "TRUELINE_SERVICES"  # in the environment of every server: the folder that it belongs to


class Server:
    """A server that can be started again after it has been ended or killed."""

    def __init__(
        self,
        *,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        is_ready: Callable[[], bool],
        ends_by: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Say what is to be started; nothing runs yet.

        Args:
            name: what messages call it.
            command: the program and its arguments; no password, because every user of the machine can read them.
            environment: all of its environment variables.
            log: where its output is appended.
            is_ready: whether it answers.
            ends_by: the signal that asks it to end in good order.
        """
        self.name, self.environment, self.log = name, dict(environment), log
        self._command, self._is_ready, self._ends_by = command, is_ready, ends_by
        self._process: subprocess.Popen[str] | None = None

    def launch(self) -> None:
        """Start the process; the kernel ends it should this process be killed (tasks/common/children.py)."""
        with self.log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasks.common.children", *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                env=self.environment,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            InputError: it has ended, or takes too long.
        """
        deadline = time.monotonic() + STARTUP_SECONDS
        while not self._is_ready():
            if not self.is_running() or time.monotonic() > deadline:
                raise InputError(f"{self.name} does not start: {self.log} says why")
            time.sleep(0.1)

    def start(self) -> None:
        """Start the process, and wait until it answers.

        Raises:
            InputError: it does not start.
        """
        self.launch()
        self.wait()

    def is_running(self) -> bool:
        """Tell whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Ask the server to end, and kill what is left after a while."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, self._ends_by)
        end_group(self._process)
        self._process = None

    def kill(self) -> None:
        """End the server and its children at once, as a crash of the machine would."""
        for each in self._family():
            with suppress(psutil.NoSuchProcess):
                each.kill()
        if self._process:
            self._process.wait()

    def pause(self) -> None:
        """Suspend the server: connections to it are accepted, and nothing answers."""
        for each in self._family():
            each.suspend()

    def resume(self) -> None:
        """Let a suspended server go on."""
        for each in self._family():
            each.resume()

    def _family(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        leader = psutil.Process(self._process.pid)
        return [leader, *leader.children(recursive=True)]


def answers(address: str) -> bool:
    """Tell whether a server of this machine answers, whatever proxy the environment names."""
    try:
        return httpx.get(address, timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def end_leftovers(folder: Path) -> None:
    """End the servers of a folder that outlived those who started them: the children of a server that was killed."""
    left = []
    for each in psutil.process_iter():
        with suppress(psutil.Error):
            if each.environ().get(MARK) == str(folder):
                each.terminate()
                left.append(each)
    for each in psutil.wait_procs(left, timeout=15)[1]:
        each.kill()
