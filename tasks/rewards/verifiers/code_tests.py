"""Whether the Python code in an answer passes its tests, in processes that can reach and change nothing.

The code is a policy's: it loops, forks, fills disks, and finds ways to look right. It runs in Linux namespaces of its
own, as in a container: no network, no process but its own, all files read-only but for an empty folder in memory. Time,
memory, processes and output are limited, the environment is empty, and all that it has started is killed with it.
"""

import ctypes
import inspect
import json
import os
import re
import resource
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
from pydantic import Field

from tasks.common.errors import InputError, quoted
from tasks.rewards.answered import score_by_key

FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)
LONGEST = 100_000  # characters of code
PROCESSES = 16
REFUSED = b"no namespaces: "


def code_tests(
    answers: Sequence[str],
    columns: Sequence[Mapping[str, Any]],
    *,
    column: str = "tests",
    partial: bool = False,
    seconds: Annotated[int, Field(ge=1)] = 5,
    megabytes: Annotated[int, Field(ge=64)] = 512,
    isolate: bool = True,
    otherwise: float | None = None,
) -> list[float]:
    """Score n answers: 1 where their code passes all tests, else 0.

    The code is the last ```python block, or the answer where there is none.

    Args:
        answers: the texts.
        columns: the rows' extra columns.
        column: the one that holds the tests, one or a list: Python code that raises an error where the answer is wrong
            (assert f(2) == 4), or {"input": ..., "output": ...}, what the program reads and should write.
        partial: give the share of the tests that are passed.
        seconds: for each test, of the processor; of the clock three times that.
        megabytes: of memory for each process, and of files.
        isolate: whether the code must run in namespaces of its own; without them it has the network, and all files that
            the user has.
        otherwise: the score for rows without tests.

    Raises:
        InputError: a row has no tests, and `otherwise` is not set; or the machine cannot run code so.
    """
    limits = {"seconds": seconds, "megabytes": megabytes, "isolate": isolate}

    def score(answer: str, key: Any, _: object) -> float:  # noqa: ANN401 - whatever a row holds
        tests = key if isinstance(key, list) else [key]
        if not tests or not all(map(_is_test, tests)):
            raise InputError(f"{quoted(column)} holds {quoted(key)}: give tests, each Python code or input and output")
        _check_machine(json.dumps(limits))
        code = (FENCED.findall(answer) or [answer])[-1]
        if not code.strip() or len(code) > LONGEST:
            return 0.0
        if not partial:
            return float(all(_passes(code, test, limits) for test in tests))
        return sum(_passes(code, test, limits) for test in tests) / len(tests)

    return score_by_key(score, answers, [()] * len(answers), columns, column=column, otherwise=otherwise)


def _is_test(test: object) -> bool:
    if isinstance(test, Mapping):
        return set(test) == {"input", "output"} and all(isinstance(text, str) for text in test.values())
    return isinstance(test, str) and bool(test.strip())


@cache
def _check_machine(limits: str) -> None:
    """Tell what is no fault of an answer before one is blamed for it.

    Raises:
        InputError: the machine offers no namespaces, or the limits let nothing run.
    """
    if sys.platform != "linux":
        raise InputError("it needs Linux, whose namespaces and limits keep code apart: run there, or do without it")
    printed = _run({"code": "print('yes')", "input": ""} | json.loads(limits))
    if printed.startswith(REFUSED):
        raise InputError(
            f"this machine does not let code run apart from network and files ({printed[len(REFUSED) :].decode()}); "
            "run where user namespaces are allowed, or accept what the code may do with the option isolate: false"
        )
    if printed != b"yes\n":
        raise InputError("not even a program that prints a word runs here; raise its options megabytes and seconds")


def _passes(code: str, test: Any, limits: Mapping[str, Any]) -> bool:  # noqa: ANN401 - a text or a mapping
    if isinstance(test, str):
        secret = secrets.token_hex(16)  # is printed at the end of the tests: neither an early end nor a print passes
        return _run({"code": code, "test": test, "secret": secret, "runner": RUNNER, **limits}) == secret.encode()
    printed = _run({"code": code, "input": test["input"], **limits}).decode(errors="replace")
    found, expected = ([line.rstrip() for line in text.rstrip().splitlines()] for text in (printed, test["output"]))
    return found == expected


def _run(job: Mapping[str, Any]) -> bytes:
    """Give what a job prints; it ends with all that it has started."""
    with TemporaryDirectory() as folder:
        started = subprocess.Popen(
            (sys.executable, "-s", "-P", "-B", "-c", PROGRAM),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=folder,
            # One order of sets everywhere; threads of numerical libraries take memory.
            env={"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LANG": "C.UTF-8"},
        )
        assert started.stdin and started.stdout
        try:
            with started.stdin as pipe:
                pipe.write(json.dumps(dict(job)).encode())
            return _read(started, time.monotonic() + 3 * job["seconds"])
        except BrokenPipeError:
            return b""
        finally:
            _kill(started)


def _read(started: "subprocess.Popen[bytes]", deadline: float) -> bytes:
    """Give what a process prints until it closes its output; nothing where it takes too long or too many processes."""
    assert started.stdout
    printed = b""
    with selectors.DefaultSelector() as selector:
        selector.register(started.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if not selector.select(0.05):
                if len(psutil.Process(started.pid).children(recursive=True)) > PROCESSES:
                    return b""  # root has no other limit
            elif chunk := os.read(started.stdout.fileno(), 2**16):
                printed += chunk
            else:
                return printed
    return b""


def _kill(started: "subprocess.Popen[bytes]") -> None:
    """End a process and its descendants; it takes up those that have left their parent, and waits to be killed."""
    assert started.stdout
    while groups := set(filter(None, map(_group, psutil.Process(started.pid).children(recursive=True)))):
        for group in groups:  # at once, for they may fork; the first of a namespace takes all others there with it
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        time.sleep(0.001)
    started.kill()
    started.wait()
    started.stdout.close()


def _group(process: psutil.Process) -> int | None:
    """The group of a process, unless it has ended."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getpgid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return None


# What follows is the program of that process, sent to it as text, so that it starts with nothing else.


def _serve() -> None:
    """Run a job in namespaces, print what it prints, close the output, and wait to be killed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the process that asks
    libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what leaves its parent stays below this one
    job = json.loads(sys.stdin.buffer.read())
    try:
        if job["isolate"]:
            _leave_namespaces(libc)
    except OSError as error:
        os.write(1, b"no namespaces: " + str(error.strerror).encode())
        os._exit(1)
    if os.fork() == 0:  # in the new namespace of processes the first one, with whose end all others end
        try:
            os.setpgid(0, 0)
            if job["isolate"]:
                _hide_files(libc, job["megabytes"])
            os.write(1, _printed(job))
        except OSError as error:
            os.write(1, b"no namespaces: " + str(error.strerror).encode())
        finally:
            os._exit(0)
    os.wait()
    os.close(1)
    while True:
        signal.pause()


def _leave_namespaces(libc: ctypes.CDLL) -> None:
    """Enter new namespaces of users, mounts, processes, network and IPC (unshare(2))."""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(0x10000000 | 0x20000 | 0x20000000 | 0x40000000 | 0x8000000):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    # No root there either: what it runs has no right to undo what follows.
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {uid} 1"), ("gid_map", f"1000 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123 - without pathlib it starts sooner
            file.write(text)


def _hide_files(libc: ctypes.CDLL, megabytes: int) -> None:
    """Make all files read-only; in place of the working folder, of processes and of sockets, empty folders."""

    def check(code: int) -> None:
        if code:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    here = os.getcwd().encode()  # noqa: PTH109 - without pathlib it starts sooner
    check(libc.mount(None, b"/", None, 0x40000 | 0x4000, None))  # MS_PRIVATE, MS_REC
    attributes = (ctypes.c_uint64 * 4)(1, 0, 0, 0)  # MOUNT_ATTR_RDONLY
    check(libc.syscall(442, -100, b"/", 0x8000, ctypes.byref(attributes), ctypes.sizeof(attributes)))  # mount_setattr
    for folder in (here, b"/run", b"/proc"):
        check(libc.mount(b"none", folder, b"tmpfs", 2 | 4, f"size={megabytes}m,mode=0700".encode()))  # nosuid, nodev
    os.chdir(here)


def _printed(job: dict[str, Any]) -> bytes:
    """Run the code, and then the test, in a process of limited means; give the first megabyte of what it prints."""
    is_test = "test" in job
    files = {"main.py": job["code"], "input": json.dumps([job["test"], job["secret"]]) if is_test else job["input"]}
    for name, text in files.items():
        with open(name, "w", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            file.write(text)
    given, output = os.open("input", os.O_RDONLY), os.open("output", os.O_RDWR | os.O_CREAT)
    os.unlink("input")  # noqa: PTH108
    os.unlink("output")  # noqa: PTH108
    if os.fork() == 0:
        try:
            os.dup2(given, 0)
            os.dup2(output, 1)
            size = job["megabytes"] * 2**20
            for limit, value in (
                (resource.RLIMIT_CPU, job["seconds"]),
                (resource.RLIMIT_AS, size),
                (resource.RLIMIT_FSIZE, size),
                (resource.RLIMIT_CORE, 0),
                (resource.RLIMIT_NPROC, 16 if job["isolate"] else resource.getrlimit(resource.RLIMIT_NPROC)[1]),
            ):
                resource.setrlimit(limit, (value, value))
            program = ["-c", job["runner"]] if is_test else ["main.py"]
            os.execv(sys.executable, [sys.executable, "-s", "-P", "-B", *program])
        finally:
            os._exit(1)
    os.wait()
    return os.pread(output, 2**20, 0)


def _test() -> None:
    """Run the code and its test in one namespace of names; at the end print the secret."""
    with os.fdopen(0, closefd=False) as given:
        test, secret = json.load(given)
    verdict, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    names = {"__name__": "answer"}
    with open("main.py", encoding="utf-8") as file:  # noqa: PTH123
        code = file.read()
    exec(compile(code, "main.py", "exec"), names)
    exec(compile(test, "test", "exec"), names)
    os.write(verdict, secret.encode())


def _program(imports: str, functions: Sequence[Any]) -> str:
    """The text of a program that calls the last of some functions."""
    return "\n".join([imports, *map(inspect.getsource, functions), f"{functions[-1].__name__}()"])


PROGRAM = _program(
    "import ctypes, json, os, resource, signal, sys\nfrom typing import Any",
    [_leave_namespaces, _hide_files, _printed, _serve],
)
RUNNER = _program("import json, os", [_test])
