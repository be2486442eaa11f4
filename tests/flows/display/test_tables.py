"""Tables and sentences fit the terminal and break at words."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest
from rich.console import Console

from flows.display.tables import PIPED_WIDTH, column_widths, print_sentence, table

WIDTHS = (60, 80, 120)
REASON = "win rate over SFT 0.729 [0.695, 0.762], at least 0.5: passed"
ROWS = [
    ("2026-11-22 03:00", "cron", "promote", "3", REASON),
    ("2026-11-23 03:00", "ada@example.org", "rollback", "2", "Answers to refunds became too short."),
]
HEADER = ("time (UTC)", "who", "action", "version", "reasons")


def printed(width: int, *content: object, terminal: bool = False) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=terminal, color_system=None).print(*content)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_fits_and_breaks_no_word(width: int) -> None:
    lines = printed(width, table(HEADER, ROWS, width))

    assert max(map(len, lines)) <= width
    words = {word for row in ROWS for cell in row for word in cell.split()}
    assert words <= {word for line in lines for word in line.split()}


def test_only_the_wide_column_gives_way() -> None:
    # 80 - 4 gaps of 2 = 72, of which 16 + 15 + 8 + 7 = 46 leave 26 to the reasons.
    columns = list(zip(HEADER, *ROWS, strict=True))
    assert column_widths(columns, 80) == [16, 15, 8, 7, 26]
    assert column_widths(columns, 200) == [16, 15, 8, 7, len(REASON)]
    # 60 - 8 = 52: what is over 11 gives way, but ada@example.org is a word of 15. The sum of 11, 15, 8, 7, 11 is 52.
    assert column_widths(columns, 60) == [11, 15, 8, 7, 11]


def test_a_word_longer_than_the_table_is_broken_and_lost_nowhere() -> None:
    path = "/home/ada/" + "models/" * 12
    lines = printed(60, table(("check", "found"), [("disk", path)], 60))

    assert max(map(len, lines)) <= 60
    assert "".join(line.removeprefix("disk").strip() for line in lines[1:]) == path


def test_a_table_without_rows_or_with_empty_cells() -> None:
    assert printed(60, table(("stage", "state"), [], 60)) == ["stage  state"]
    assert printed(60, table(("stage", ""), [("sft", "")], 60)) == ["stage", "sft"]


def test_wide_characters_count_twice() -> None:
    assert column_widths([["日本"], ["ok"]], 80) == [4, 2]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sentence_breaks_at_words_on_a_terminal(width: int) -> None:
    out = io.StringIO()
    sentence = " ".join([REASON] * 4)
    print_sentence(Console(file=out, width=width, force_terminal=True, color_system=None), sentence, indent=2)

    lines = out.getvalue().splitlines()
    assert len(lines) > 1
    assert all(len(line.rstrip()) <= width and line.startswith("  ") for line in lines)
    assert " ".join(line.strip() for line in lines) == sentence


def test_a_sentence_is_one_line_for_a_program() -> None:
    out = io.StringIO()
    print_sentence(Console(file=out, width=60), " ".join([REASON] * 4), indent=2)

    assert out.getvalue() == "  " + " ".join([REASON] * 4) + "\n"


SHOW_WIDTH = "from flows.display.tables import make_console; print(make_console().width)"


def width_in_a_process(columns: str | None, **streams: Any) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment |= {"TERM": "xterm"} | ({"COLUMNS": columns} if columns else {})  # rich asks no dumb terminal
    return subprocess.run([sys.executable, "-c", SHOW_WIDTH], check=True, env=environment, text=True, **streams).stdout


@pytest.mark.parametrize(("columns", "width"), [(None, PIPED_WIDTH), ("120", 120), ("wide", PIPED_WIDTH)])
def test_the_width_where_the_output_is_piped(columns: str | None, width: int) -> None:
    assert width_in_a_process(columns, stdout=subprocess.PIPE) == f"{width}\n"


def test_the_width_of_a_terminal() -> None:
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 97, 0, 0))  # rows, columns, pixels
    width_in_a_process(None, stdin=end, stdout=end, stderr=end)

    assert os.read(terminal, 100).split() == [b"97"]
    os.close(terminal)
    os.close(end)
