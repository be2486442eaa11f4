"""Code of a policy: right, wrong, and hostile. What it may reach without namespaces is not tried, and so not here."""

from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.common.errors import InputError
from tests.rewards.verifiers.scored import scored

NAME = "code_tests"
TESTS = ["assert f(2) == 4", "assert f(3) == 9"]
RIGHT = "def f(x): return x * x"


def passes(answer: str, tests: Any = TESTS, **options: Any) -> float:
    return scored(NAME, answer, row={"tests": tests}, **options)


@pytest.mark.parametrize(
    "answer",
    [
        RIGHT,
        f"Here it is:\n```python\n{RIGHT}\n```\nDone.",
        f"```python\nraise ValueError\n```\nBetter:\n```\n{RIGHT}\n```",
        f"print('talk ' * 100)\n{RIGHT}",
        "import math\ndef f(x): return int(math.pow(x, 2))",
        "from dataclasses import dataclass\ndef f(x): return x ** 2\nif __name__ == '__main__': input()",
    ],
)
@pytest.mark.parametrize("isolate", [True, False])
def test_what_is_right(answer: str, isolate: bool):
    assert passes(answer, isolate=isolate) == passes(answer, "\n".join(TESTS), isolate=isolate) == 1


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "The answer is correct.",
        "def f(x): return x * 2",
        "def f(x): return",
        "def f(x: return",
        "print('all tests passed')",
        "print('all tests passed')\nimport sys\nsys.exit(0)",
        "import os\nos.write(1, b'all tests passed')\nos._exit(0)",
        "import atexit\natexit.register(print, 'passed')\nraise SystemExit",
        "raise KeyboardInterrupt",
        "f = f",
        "x = ' ' * 10**10",
        "def f(x): return f(x)",
        "(" * 10_000,
        "a = 1\n" * 50_000,
        "import ctypes\nctypes.string_at(0)",
        "import os\nos.kill(os.getpid(), 9)",
        "import os\nos.kill(-1, 9)",
        "\0",
    ],
)
def test_what_is_wrong(answer: str):
    assert passes(answer) == 0


@pytest.mark.slow
@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize(
    "answer",
    [
        "while True: pass",
        "import time\ntime.sleep(1000)",
        "import os\nwhile True: os.fork()",
        "import os, time\nwhile True:\n    if os.fork() == 0:\n        time.sleep(1000)",
        "while True: print('x' * 10**6)",
    ],
)
def test_what_never_ends_is_ended_with_all_that_it_started(answer: str, isolate: bool):
    before = {process.pid for process in psutil.process_iter()}
    assert passes(answer, seconds=1, isolate=isolate) == 0
    assert not [each for each in new_processes(before) if "main.py" in each or "_test()" in each]


def test_a_process_that_leaves_its_parent_ends_too():
    before = {process.pid for process in psutil.process_iter()}
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\n"
    assert passes(daemon + RIGHT) == passes(daemon + RIGHT, isolate=False) == 1
    assert not [each for each in new_processes(before) if "_test()" in each]


def new_processes(before: set[int]) -> list[str]:
    """The commands of processes of now that were not there before."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if process.info["pid"] not in before and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.info["cmdline"] or []))
    return found


@pytest.mark.parametrize(
    "body",
    [
        "import socket\n    try: socket.create_connection(('127.0.0.1', 1), 1)\n"
        "    except OSError as error: return error.errno == 101",  # unreachable: not even this machine is there
        "import os\n    return {'HOME', 'PATH', 'USER', 'DVC_NO_ANALYTICS'}.isdisjoint(os.environ)",
        "import os\n    return os.listdir() == ['main.py'] and not os.listdir('/proc') and not os.listdir('/run')",
        "import os\n    open('mine', 'w').write('x')\n    return os.listdir('.') != []",
        "import os\n    try: os.open(HERE + '/theirs', os.O_CREAT | os.O_WRONLY)\n"
        "    except OSError as error: return error.errno == 30",  # a read-only file system
        "import os\n    try: os.remove(HERE + '/mine')\n    except OSError as error: return error.errno == 30",
        "import ctypes\n    return ctypes.CDLL(None).umount2(b'/proc', 2) != 0",  # it has no rights of its own
        "open('big', 'wb').write(b'x' * 10**6)\n    return True",
    ],
)
def test_it_reaches_and_changes_nothing(body: str, tmp_path: Path):
    (tmp_path / "mine").write_text("")
    assert passes(f"HERE = {str(tmp_path)!r}\ndef f():\n    {body}", "assert f() is True") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_files_have_a_limit():
    assert passes("open('big', 'wb').write(b'x' * 10**9)\n" + RIGHT) == 0


def test_partial_credit_is_the_share_of_tests():
    assert passes("def f(x): return 4", partial=True) == 0.5
    assert passes("def f(x): return 4") == 0


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", 1),
        ("print(3, end='')", 1),
        ("print('3\\n')", 1),
        ("print('3 4 5 6')", 0),
        ("print('3\\n4')", 0),
        ("print('3' * 10**7)", 0),
        ("", 0),
        ("import sys\nprint(sys.stdin.read())", 0),
    ],
)
def test_a_program_is_given_its_input_and_compared_by_its_output(answer: str, score: float):
    assert passes(answer, {"input": "1 2\n", "output": "3\n"}) == score


@pytest.mark.parametrize("tests", [3, [], [3], "", {"input": "1"}, {"input": 1, "output": "2"}])
def test_what_is_no_test_is_refused(tests: Any):
    with pytest.raises(InputError, match=r"'tests' holds .*: give tests, each Python code or input and output"):
        passes(RIGHT, tests)


def test_rows_without_tests_have_the_score_that_is_stated():
    assert scored(NAME, RIGHT, row={}, otherwise=0.5) == 0.5


def test_a_machine_that_offers_no_namespaces_is_named(monkeypatch: pytest.MonkeyPatch):
    """As in a container that forbids them: the call that enters them fails."""
    from tests.rewards.verifiers.scored import verifier

    function = verifier(NAME, seconds=4)._function
    program = function.__globals__["PROGRAM"].replace(
        "if libc.unshare(", "ctypes.set_errno(1)\n    if 1 or libc.unshare("
    )
    monkeypatch.setitem(function.__globals__, "PROGRAM", program)
    with pytest.raises(
        InputError, match=r"network and files \(Operation not permitted\); run where user namespaces are"
    ):
        passes(RIGHT, seconds=4)
    assert passes(RIGHT, seconds=4, isolate=False) == 1
