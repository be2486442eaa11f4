"""Tables and sentences for a terminal: they fit its width and break at words."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tasks.common.escapes import one_line

PIPED_WIDTH = 80  # columns, where the output goes to a file or a pipe
GAP = 2  # columns between two cells

Cell = str | Text


def make_console() -> Console:
    """Give a console as wide as the terminal or, where COLUMNS is set, as that says."""
    # Left alone, rich would take the width of the terminal that the command was typed in, also for a file.
    wide = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(highlight=False, width=None if wide else PIPED_WIDTH)


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]], width: int, *, right: Sequence[int] = ()) -> Table:
    """Lay out rows under a header, in at most `width` columns.

    Args:
        header: the name of each column.
        rows: one cell for each column. Text from data is escaped.
        width: of the whole table.
        right: the columns that are aligned on the right.
    """
    cells = [[shown(cell) for cell in row] for row in rows]
    columns = list(zip([Text(name) for name in header], *cells, strict=True))
    widths = column_widths([[cell.plain for cell in column] for column in columns], width)
    laid_out = Table(box=None, pad_edge=False, header_style="bold")
    for place, name in enumerate(header):
        justify: Literal["left", "right"] = "right" if place in right else "left"
        laid_out.add_column(Text(name), justify=justify, overflow="fold", width=widths[place])
    for row in cells:
        laid_out.add_row(*row)
    return laid_out


def column_widths(columns: Sequence[Sequence[str]], width: int) -> list[int]:
    """Choose the width of each column so that the table fits and, as far as can be, no word breaks.

    Narrow columns keep their natural width; wide ones share what is left. Words break where even the longest word of
    each column does not fit, the longest first.
    """
    available = width - GAP * (len(columns) - 1)
    longest_line = [_longest(column, str.splitlines) for column in columns]
    longest_word = [_longest(column, str.split) for column in columns]
    least = _share([1] * len(columns), longest_word, available)
    return _share(least, longest_line, available)


def _longest(cells: Sequence[str], split: Callable[[str], list[str]]) -> int:
    return max((cell_len(part) for cell in cells for part in split(cell)), default=0)


def _share(least: Sequence[int], wanted: Sequence[int], available: int) -> list[int]:
    """Give each what it wants up to one limit, the highest at which the sum fits; never less than its least."""

    def limited(limit: int) -> list[int]:
        return [max(low, min(high, limit)) for low, high in zip(least, wanted, strict=True)]

    limits = [limit for limit in range(1, max(wanted, default=0) + 1) if sum(limited(limit)) <= available]
    return limited(max(limits, default=1))


def print_sentence(console: Console, text: str, indent: int = 0) -> None:
    """Print a sentence: on a terminal broken at words, otherwise in one line for programs to read."""
    if console.is_terminal:
        console.print(Padding(shown(text), (0, 0, 0, indent), expand=False))
    else:
        console.print(Text(" " * indent) + shown(text), soft_wrap=True)


def shown(text: Cell) -> Text:
    """Show a text as it is: rich reads no markup and no :emoji: in it, and the terminal no control sequence."""
    return text if isinstance(text, Text) else Text(one_line(text))
