"""Two clones with one MLflow server promote at once: one champion, and no decision is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.registry.conftest import run_again
from tests.registry.test_server_lock import ROLL_BACK
from tests.services.conftest import champions

TIMES = 10  # two processes each


def test_twenty_at_once_leave_one_champion_and_every_decision(checkout: Path) -> None:
    champion.promote(load_params())
    run_again(content=2)
    champion.promote(load_params())
    assert champions() == {"champion": 2, "previous": 1}
    clones = [checkout, Path(shutil.copytree(checkout, checkout.with_name("clone"), symlinks=True))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ROLL_BACK], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for folder in clones
    ]
    try:
        for process in processes:
            assert process.stdout and process.stdout.readline() == "ready\n"
        first = len((checkout / "decisions.jsonl").read_bytes().splitlines())
        expected = 2
        for number in range(TIMES):
            for process in processes:
                print(f"reason {number}", file=process.stdin, flush=True)
            answers = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
            expected = 3 - expected
            winner = answers.index(expected)
            (refused,) = [each for each in answers if isinstance(each, str)]
            assert f"reason {number}): pull it" in refused
            records = [(folder / "decisions.jsonl").read_bytes() for folder in clones]
            assert champions() == {"champion": expected, "previous": 3 - expected}
            assert records[1 - winner] in records[winner]  # the other has added nothing, and lost nothing
            (clones[1 - winner] / "decisions.jsonl").write_bytes(records[winner])  # as git pull does
        decisions = [json.loads(line) for line in records[winner].splitlines()]
        assert [each["reasons"] for each in decisions[first:]] == [[f"reason {number}"] for number in range(TIMES)]
    finally:
        for process in processes:
            process.communicate(timeout=60)
