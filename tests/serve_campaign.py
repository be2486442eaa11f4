"""`trueline serve` under load while the champion moves: no request fails, and how long a new champion takes to answer.

    python -m tests.serve_campaign --model FOLDER --requests 1000

It lays down a checkout whose versions are the model in FOLDER (of random weights unless given), promotes and rolls back
while requests come, and prints a table. It is no part of `make test`, which does the same with fewer requests.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.conftest import ROOT  # and has the commands of this environment found

ADDRESS = re.compile(r"at (http://\S+)/v1")
START_SECONDS = 180.0
MOST_SECONDS = 30.0  # from a moved alias to the first answer of the new champion
WORDS = ["please", "send", "the", "order", "back", "refund", "it", "today"]


class Answer(NamedTuple):
    """What a request came to."""

    status: int  # 0: none came, and model is the error; 599: a stream that broke off
    model: str
    seconds: float
    end: float  # monotonic


class Move(NamedTuple):
    """A change of champion."""

    what: str
    champion: str
    seconds: float  # to its first answer


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Run `trueline serve` in a checkout on a free port; gives its address, and ends it by SIGTERM."""
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", "0", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    address = threading.Event()

    def read() -> None:
        assert process.stderr
        with process.stderr as printed:
            for line in printed:
                lines.append(line)
                if ADDRESS.search(line):
                    address.set()
        address.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert address.wait(START_SECONDS), lines
        found = [match[1] for line in lines if (match := ADDRESS.search(line))]
        assert found, lines
        yield found[0], process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            reader.join()
            sys.stderr.writelines(lines)


def ask(client: httpx.Client, number: int, max_tokens: int) -> Answer:
    """Send a request, every third one as a stream."""
    words = [WORDS[(number * step) % len(WORDS)] for step in range(1, 5)]
    body = {"messages": [{"role": "user", "content": " ".join(words)}], "max_tokens": max_tokens}
    began = time.monotonic()
    try:
        response = client.post("/v1/chat/completions", json={**body, "stream": number % 3 == 0})
    except httpx.TransportError as error:
        return Answer(0, repr(error), time.monotonic() - began, time.monotonic())
    end = time.monotonic()
    model = re.search(r'"model": ?"([^"]+)"', response.text)
    is_whole = number % 3 != 0 or response.text.endswith("data: [DONE]\n\n")
    return Answer(response.status_code if is_whole else 599, model[1] if model else "", end - began, end)


def move(what: str, change: Callable[[], Any], answers_now: Callable[[], Sequence[Answer]]) -> Move:
    """Change the champion, and wait for its first answer; requests come meanwhile."""
    changed = change()
    assert changed["promoted"], changed
    began, champion = time.monotonic(), f"trueline-policy/{changed['champion']}"
    while True:
        first = [answer.end for answer in answers_now() if answer.model == champion and answer.end > began]
        if first:
            return Move(what, champion, min(first) - began)
        assert time.monotonic() - began < 2 * MOST_SECONDS, f"{champion} has not answered"
        time.sleep(0.05)


class Asking:
    """Requests that come until somebody stops them."""

    def __init__(self, address: str, at_once: int, max_tokens: int) -> None:
        """Begin to ask."""
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(at_once)
        self._client = httpx.Client(base_url=address, timeout=120, trust_env=False)
        self._max_tokens, self._at_once = max_tokens, at_once
        self._asking = [self._pool.submit(self._ask, start) for start in range(at_once)]

    def _ask(self, number: int) -> None:
        while not self._stop.is_set():
            self.answers.append(ask(self._client, number, self._max_tokens))
            number += self._at_once

    def stop(self) -> list[Answer]:
        """End when the requests under way are answered; gives all answers."""
        self._stop.set()
        for asking in self._asking:
            asking.result()
        self._pool.shutdown()
        self._client.close()
        return self.answers


def campaign(
    folder: Path, requests: int, at_once: int, max_tokens: int, *options: str
) -> tuple[list[Answer], list[Move]]:
    """Move the champion of a checkout, the working folder, until so many requests are answered."""
    from tasks.registry.promotion import champion
    from tasks.settings.params import load_params

    params = load_params()
    moves = []
    with served(folder, *options) as (address, process):
        asking = Asking(address, at_once, max_tokens)
        try:
            moves.append(move("promote", lambda: champion.promote(params), lambda: list(asking.answers)))
            while len(moves) < 2 or len(asking.answers) < requests:
                back = lambda: champion.rollback(params, "the campaign")  # noqa: E731
                moves.append(move("rollback", back, lambda: list(asking.answers)))
        finally:
            answers = asking.stop()
    assert process.returncode == 0, process.returncode
    return answers, moves


def lay_down(folder: Path, model: Path | None) -> None:
    """Make a checkout with a champion and another candidate, both with the weights of a model."""
    import json

    from tasks.registry.promotion import champion
    from tasks.settings.params import load_params
    from tests.registry.conftest import FIGURES, change_params, commit, dvc, repro, run_again, shell, write_pipeline

    os.environ["DVC_NO_ANALYTICS"] = "1"
    shell("git", "init", "-q", cwd=folder)
    dvc("init", "-q", cwd=folder)
    write_pipeline(folder)
    (folder / "figures.json").write_text(json.dumps(FIGURES))
    if model is None:
        from tests.tiny import tiny_policy, tiny_tokenizer

        tiny_policy().save_pretrained(folder / "given/ppo")
        tiny_tokenizer().save_pretrained(folder / "given/ppo")
    else:
        shutil.copytree(model, folder / "given/ppo")
    commit(folder)
    os.chdir(folder)
    change_params(evaluate={"max_new_tokens": 32})
    repro()
    champion.promote(load_params())
    run_again(content=2)


def main() -> None:
    """Run the campaign and print what it measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=32)
    options = parser.parse_args()
    model = options.model and options.model.resolve()
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        lay_down(Path(folder), model)
        answers, moves = campaign(Path(folder), options.requests, options.at_once, options.max_tokens)
        os.chdir(ROOT)
    seconds = sorted(answer.seconds for answer in answers)
    quantiles = ", ".join(f"{share} % {seconds[int(share / 100 * (len(seconds) - 1))]:.2f} s" for share in (50, 95, 99))
    failed = [answer for answer in answers if answer.status != 200]
    print(f"{len(answers)} requests, {len(failed)} failed; answered within: {quantiles}")
    print("| move | champion | seconds to its first answer |\n|---|---|---|")
    for each in moves:
        print(f"| {each.what} | {each.champion} | {each.seconds:.1f} |")
    slowest = max(each.seconds for each in moves)
    if failed or slowest > MOST_SECONDS:
        raise SystemExit(f"failed: {failed[:5]}; slowest: {slowest:.1f} s")


if __name__ == "__main__":
    main()
