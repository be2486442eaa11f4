"""Whether the number, or the mathematical expression, that an answer ends in equals the expected one.

math-verify finds and compares them. It computes what a policy wrote, and 10**10**10 takes all time and memory that
there is. So it runs in a process of its own, this file as a program, with limits, and which is killed at need.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from tasks.common.errors import InputError, quoted
from tasks.rewards.answered import key_texts, score_by_key

READ = 20_000  # characters, from the end
MEMORY = 2 * 2**30  # bytes of address space
BOX = r"\boxed{"
Verdict = Literal["right", "wrong", "no number expected"]


def numeric_answer(
    answers: Sequence[str],
    references: Sequence[Sequence[str]],
    columns: Sequence[Mapping[str, Any]],
    *,
    column: str | None = None,
    marker: str | None = None,
    decimals: Annotated[int, Field(ge=0, le=15)] = 6,
    seconds: Annotated[float, Field(gt=0)] = 2.0,
    otherwise: float | None = None,
) -> list[float]:
    r"""Score n answers: 1 where the last \boxed{}, else the number after "answer", else the last number, is right.

    Args:
        answers: the texts.
        references: the expected values, unless a column has them: numbers, LaTeX, or text that ends in one.
        columns: the rows' extra columns.
        column: the one that holds the expected value, or a list of them.
        marker: what follows its last occurrence is the answer; without it there is none.
        decimals: to which both are rounded.
        seconds: of the processor, after which a comparison is given up: the answer is wrong.
        otherwise: the score for rows without an expected value.

    Raises:
        InputError: a row has no expected value, and `otherwise` is not set; or what is expected holds no number.
    """

    def score(answer: str, key: Any, _: object) -> float:  # noqa: ANN401 - whatever a row holds
        _, found, rest = answer.rpartition(marker) if marker else ("", "", answer)
        if marker and not found:
            return 0.0
        expected = [text.rpartition(marker)[2] if marker else text for text in key_texts(key)]
        verdict = PROGRAM.ask(_last_box(rest[-READ:]), expected, decimals, seconds)
        if verdict == "no number expected":
            raise InputError(f"what is expected, {quoted(key)}, holds no number: correct it, or name its column")
        return float(verdict == "right")

    return score_by_key(score, answers, references, columns, column=column, otherwise=otherwise)


def _last_box(text: str) -> str:
    r"""Give the last \boxed{} alone, for of several math-verify makes one; the text where there is none."""
    box = text[text.rfind(BOX) :] if BOX in text else text
    depth = 0
    for place, character in enumerate(box if box is not text else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "}" and depth == 0:
            return box[: place + 1]
    return box


class _Program:
    """This file as a program, which compares answers; it is started anew after one that it did not survive."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def ask(self, answer: str, expected: Sequence[str], decimals: int, seconds: float) -> Verdict:
        """Compare; an answer that takes too much time or memory is wrong."""
        with self._lock:
            if self._process and self._process.poll() is not None:  # killed from outside, by no answer's fault
                _end(self._process)
                self._process = None
            process = self._process = self._process or self._start()
            assert process.stdin and process.stdout
            line = ""
            try:
                process.stdin.write(json.dumps([answer, list(expected), decimals, seconds]) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                pass
            if line:
                verdict: Verdict = json.loads(line)
                return verdict
            self._process = None
            _end(process)
            return "wrong"

    def _start(self) -> "subprocess.Popen[str]":
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        started = subprocess.Popen(
            # -P: the folder of this file, where others lie under any name, is not where modules are looked for.
            (sys.executable, "-P", __file__),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        weakref.finalize(self, _end, started)  # with this file's function, or at exit
        assert started.stdout
        if started.stdout.readline() != "ready\n":
            raise InputError("math-verify cannot be started; install the project again (make install)")
        return started


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


PROGRAM = _Program()


def _serve() -> None:
    """Answer questions, a line each, until there are no more."""
    import math_verify  # noqa: F401 - its seconds are no comparison's

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _say("ready")
    for line in sys.stdin:
        answer, expected, decimals, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # at its end the system kills this process, whatever it is at
        verdict = _compare(answer, expected, decimals)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(json.dumps(verdict))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _compare(answer: str, expected: Sequence[str], decimals: int) -> Verdict:
    from math_verify import parse, verify

    keys = [_parsed_key(each) for each in expected]
    if not all(keys):
        return "no number expected"
    # Without limits of theirs, which are alarms: the limits of this process hold.
    found = parse(answer, parsing_timeout=None)
    right = any(verify(key, found, float_rounding=decimals, timeout_seconds=None) for key in keys)
    return "right" if right else "wrong"


def _parsed_key(text: str) -> list[Any]:
    """Read what is expected; LaTeX may stand there without dollar signs."""
    from math_verify import parse

    is_bare = "\\" in text and "$" not in text and "\\boxed" not in text
    found: list[Any] = parse(f"${text}$" if is_bare else text, fallback_mode="no_fallback", parsing_timeout=None)
    return found


if __name__ == "__main__":
    _serve()
