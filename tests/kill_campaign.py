"""Kill the whole chain at random moments, again and again, and hold its end against an undisturbed run's.

`make kill-test` works on two fresh copies of the checkout. In one everything runs undisturbed: the chain up to a
promotion, a second candidate, its approval, a rollback. In the other each stage and command is killed outright and
started again. Both must end with the same bytes, decisions and registry, else the exit code is 1. The table on stdout
is the one of docs/reliability.md.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# A chain in little, whose gate lets everything pass: whether answers are better is not what is tested here.
SETTINGS: dict[str, Any] = {
    "runtime": {"threads": 1, "checkpoint_every": 3},
    "prepare": {
        "demonstrations": {"options": {"rows": 300}},
        "preferences": {"options": {"rows": 300, "label_noise": 0.0}},
        "prompts": {"options": {"rows": 200}},
        "split": {"validation": 0.2, "test": 0.2},
    },
    "validate": {"max_quarantined": 0.5, "min_rows": 4},
    "base": {"scratch": {"vocabulary": 400, "hidden_size": 32, "layers": 1, "heads": 2, "context": 256}},
    "sft": {"epochs": 12},
    "reward": {"epochs": 8},
    "held_out_reward": {"epochs": 8},
    "ppo": {
        "iterations": 12,
        "rollouts": 16,
        "responses_per_prompt": 4,
        "num_minibatches": 2,
        "max_new_tokens": 24,
        "critic_warmup": 0,
    },
    "reward_check": {"on_failure": "warn"},
    "evaluate": {"max_new_tokens": 24, "bootstrap": 200, "best_of": 2},
    "gate": {
        "min_win_rate": 0.0,
        "min_held_out_win_rate": 0.0,
        "min_reward_accuracy": 0.0,
        "min_held_out_accuracy": 0.0,
        "min_eos_rate": 0.0,
        "min_length_ratio": 0.0,
        "max_over_optimised_points": 8,
        "max_category_regressions": 100,
        "max_length_ratio": 100.0,
        "max_repetition": 1.0,
        "max_refusals_gained": 1.0,
        "max_perplexity_ratio": 1000.0,
        "max_kl": 1000.0,
    },
}
Victim = Literal["command", "stage", "all"]  # who is killed: what was started, the stage below it, or all at once
LIMIT = 900  # seconds that a command may take
APPROVE = ("trueline", "approve", "2", "--by", "a person", "--reason", "as a test")
ROLLBACK = ("trueline", "rollback", "--reason", "as a test")


class Kill(NamedTuple):
    """A kill that met its victim at work."""

    during: str  # a stage, or a command
    victim: Victim


class End(NamedTuple):
    """All that must not depend on kills."""

    lock: str  # dvc.lock: the hash of every output
    opponent: str
    decisions: list[tuple[str, int]]
    champion: int
    versions: int
    runs: dict[str, int]  # of MLflow that are neither FINISHED nor those of killed processes, by status
    finished_twice: list[str]  # stages of which two finished runs have one key


class Checkout:
    """A copy of the project to run commands in."""

    def __init__(self, folder: Path) -> None:
        """Copy what git knows of the checkout, uncommitted changes included, and choose the settings."""
        self.folder = folder
        known = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, known.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        for command in (
            ["init", "-q"],
            ["add", "-A"],
            ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
        ):
            subprocess.run(["git", *command], cwd=folder, check=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
        self.run("trueline", "configure", "settings.yaml")

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command of the environment in a session of its own."""
        environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(self.folder)}
        log = (self.folder / "log").open("a", encoding="utf-8")
        with log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            return subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def run(self, *command: str) -> float:
        """Run a command to its end and give the seconds it took; its exit code must be 0."""
        began = time.monotonic()
        code = self.start(*command).wait(LIMIT)
        if code:
            raise SystemExit(f"{' '.join(command)} ended with {code}: see {self.folder / 'log'}")
        return time.monotonic() - began

    def ask(self, *command: str) -> Any:
        """Give what a command says with --json."""
        shown = subprocess.run(
            [str(BIN / "trueline"), *command, "--json"],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(self.folder)},
            check=True,
            capture_output=True,
            text=True,
        )
        return json.loads(shown.stdout)

    def moves(self) -> list[tuple[str, int]]:
        """The decisions on record."""
        return [(decision["action"], decision["policy"]["version"]) for decision in self.ask("history")]

    def champion(self) -> int | None:
        """The version that is champion."""
        champion: int | None = self.ask("status")["registry"]["champion"]
        return champion

    def end(self) -> End:
        """Everything that is compared."""
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            statuses = dict(database.execute("select status, count(*) from runs group by status").fetchall())
            [versions] = database.execute(
                "select count(*) from model_versions where name = 'trueline-policy'"
            ).fetchone()
            keyed = database.execute(
                "select r.name, t.value from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'key' "
                "where r.status = 'FINISHED' and r.lifecycle_stage = 'active'"
            ).fetchall()
        return End(
            lock=(self.folder / "dvc.lock").read_text(encoding="utf-8"),
            opponent=(self.folder / "opponent.json").read_text(encoding="utf-8"),
            decisions=self.moves(),
            champion=self.champion() or 0,
            versions=versions,
            runs={
                status: count for status, count in statuses.items() if status not in ("FINISHED", "KILLED", "FAILED")
            },
            finished_twice=sorted(name for (name, _), count in Counter(keyed).items() if count > 1),
        )

    def stage_at_work(self) -> tuple[str, int] | None:
        """The stage that runs, and its process."""
        for note in (self.folder / ".trueline" / "progress").glob("*.json"):
            try:
                shown = json.loads(note.read_text(encoding="utf-8"))
            except (OSError, ValueError):  # it has just ended
                continue
            if psutil.pid_exists(shown["pid"]):
                return shown["stage"], shown["pid"]
        return None

    def kill(self, process: subprocess.Popen[str], victim: Victim) -> Kill | None:
        """Kill outright, and wait until everything that was started is gone; None where the command had ended."""
        at_work = self.stage_at_work()
        if process.poll() is not None:
            return None
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        chosen = {
            "command": family[:1],
            "stage": [each for each in family if at_work and each.pid == at_work[1]],
            "all": family,
        }
        for each in chosen[victim] or family[:1]:
            with suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        process.wait(LIMIT)
        _, alive = psutil.wait_procs(family, timeout=90)
        if alive:
            raise SystemExit(f"{alive} outlived the kill: see {self.folder / 'log'}")
        return Kill(at_work[0] if at_work else "", victim if chosen[victim] else "command")


def undisturbed(checkout: Checkout) -> tuple[End, dict[str, float]]:
    """Take the chain to a promotion, again with another seed, and back; give the end and the seconds of each part."""
    seconds: dict[str, float] = {}
    process, began, last = checkout.start("trueline", "run"), time.monotonic(), ""
    while process.poll() is None:
        now = checkout.stage_at_work()
        if now and now[0] != last:
            last, began = now[0], time.monotonic()
        if now:
            seconds[now[0]] = time.monotonic() - began
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"trueline run ended with {process.returncode}: see {checkout.folder / 'log'}")
    seconds["run"] = checkout.run("trueline", "run")
    another_candidate(checkout)
    seconds["approve"] = checkout.run(*APPROVE)
    seconds["rollback"] = checkout.run(*ROLLBACK)
    return checkout.end(), seconds


def another_candidate(checkout: Checkout) -> None:
    """Bring a second candidate up to a person's approval."""
    checkout.run("trueline", "configure", "ppo.iterations=10", "registry.approval=true")
    checkout.run("trueline", "run")


def disturbed(checkout: Checkout, seconds: dict[str, float], kills: int, dice: random.Random) -> Iterator[Kill]:
    """The same with so many kills, evenly in every stage and command."""
    stages = [name for name in seconds if name not in ("run", "approve", "rollback")]
    each = -(-kills // (len(stages) + 3))
    for place, stage in enumerate(stages):
        yield from _killed_in_stage(checkout, stages[place:], seconds[stage], each, dice)
    yield from _killed(checkout, "run", ["trueline", "run"], seconds["run"], each, dice, lambda: False)
    checkout.run("trueline", "run")
    another_candidate(checkout)
    for name, command in (("approve", APPROVE), ("rollback", ROLLBACK)):
        champion = checkout.champion()
        yield from _killed(checkout, name, command, seconds[name], each, dice, partial(_has_moved, checkout, champion))
        if checkout.champion() == champion:
            checkout.run(*command)


def _has_moved(checkout: Checkout, champion: int | None) -> bool:
    return checkout.champion() != champion


def _killed_in_stage(
    checkout: Checkout, stages: Sequence[str], seconds: float, kills: int, dice: random.Random
) -> Iterator[Kill]:
    """Have the flow or plain DVC come to a stage, the first of those that are left, and kill at a random moment of it.

    A kill may come when the stage is done; the next one then meets the stage behind it.
    """
    for number in range(kills):
        command = ["trueline", "run"] if number % 2 == 0 else ["dvc", "repro"]
        process = checkout.start(*command)
        while process.poll() is None and (checkout.stage_at_work() or ("",))[0] not in stages:
            time.sleep(0.02)
        time.sleep(dice.uniform(0, seconds))
        kill = checkout.kill(process, dice.choice(["command", "stage", "all"]))
        if kill:
            yield kill if kill.during else Kill("between stages", kill.victim)


def _killed(
    checkout: Checkout,
    name: str,
    command: Sequence[str],
    seconds: float,
    kills: int,
    dice: random.Random,
    is_done: Callable[[], bool],
) -> Iterator[Kill]:
    """Kill a command at random moments, until it has done its work all the same."""
    for _ in range(kills):
        process = checkout.start(*command)
        time.sleep(dice.uniform(0.2, 1.0) * seconds)
        kill = checkout.kill(process, dice.choice(["command", "all"]))
        if kill:
            yield Kill(kill.during or name, kill.victim)
        if is_done():
            return


def table(kills: Sequence[Kill]) -> str:
    """A row for each stage or command: how often it was killed, and who was."""
    rows = ["| killed during | kills | command alone | stage alone | all at once |", "|---|---|---|---|---|"]
    for during in dict.fromkeys(kill.during for kill in kills):
        counts = Counter(kill.victim for kill in kills if kill.during == during)
        rows.append(f"| {during} | {counts.total()} | {counts['command']} | {counts['stage']} | {counts['all']} |")
    return "\n".join([*rows, f"| all | {len(kills)} | | | |"])


def main() -> None:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=70)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    temporary_folder = Path(tempfile.mkdtemp(prefix="kills-"))
    print(f"works in {temporary_folder}", file=sys.stderr)
    (temporary_folder / "undisturbed").mkdir()
    (temporary_folder / "disturbed").mkdir()
    expected, seconds = undisturbed(Checkout(temporary_folder / "undisturbed"))
    print("undisturbed, seconds:", {name: round(took, 1) for name, took in seconds.items()}, file=sys.stderr)
    checkout, kills = Checkout(temporary_folder / "disturbed"), []
    for kill in disturbed(checkout, seconds, options.kills, random.Random(options.seed)):
        kills.append(kill)
        print(f"{len(kills)}: {kill.victim} killed during {kill.during}", file=sys.stderr)
    found = checkout.end()
    print(table(kills))
    differences = [field for field in End._fields if getattr(found, field) != getattr(expected, field)]
    for field in differences:
        print(f"{field}: {getattr(expected, field)} undisturbed, {getattr(found, field)} after the kills")
    if differences:
        raise SystemExit(f"the ends differ; both are in {temporary_folder}")
    print(
        "Both ends are the same: dvc.lock byte for byte, opponent, decisions, champion, versions; no run is left open."
    )
    shutil.rmtree(temporary_folder)


if __name__ == "__main__":
    main()
