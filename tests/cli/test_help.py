"""trueline --help: fast, in panels, a line a command."""

import resource
import subprocess
import sys
from typing import Any

import pytest
import typer

from flows import cli
from tests.cli.conftest import ROOT

HELP = """
import sys
from flows.cli import main
sys.argv = ["trueline", *sys.argv[1:], "--help"]
try:
    main()
except SystemExit:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


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
