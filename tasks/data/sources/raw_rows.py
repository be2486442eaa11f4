"""Raw rows as a source holds them, and those among them that must be fixed."""

from typing import Any, NamedTuple

from tasks.common.errors import InputError

MOST_SHOWN = 10
LONGEST_FAULT = 250  # characters of one of several
# Bytes of a row in any format: a file that holds a longer one is not what its name says, or was made to do harm.
LONGEST_ROW = 2**26
FIX = "fix or remove the row"


class RawRow(NamedTuple):
    """A row as the source holds it."""

    row: int  # where a person finds it
    fields: dict[str, Any]


class Unreadable(NamedTuple):
    """Stands for a value that Python cannot hold, such as a date after the year 9999: it harms only who uses it."""

    reason: str


class BadRows:
    """The rows of a file that must be fixed: all are counted, the first ten named in one sentence."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.count = 0
        self._first: dict[tuple[str, str], list[str]] = {}  # the first rows by their fault and its cure

    def add(self, row: int | str, fault: str, cure: str = FIX) -> None:
        """Record a row that cannot be read.

        Args:
            row: its number, with what else helps to find it.
            fault: the words that follow the row, from a colon or a verb on.
            cure: what to do.
        """
        self.count += 1
        if self.count <= MOST_SHOWN:
            self._first.setdefault((fault, cure), []).append(str(row))

    def stop(self) -> None:
        """End the reading of the file.

        Raises:
            InputError: a row was recorded.
        """
        if self.count == 1:
            [((fault, cure), [row])] = self._first.items()
            raise InputError(f"{self.path} row {row}{_joined(fault)}: {cure}")
        if self.count:
            shown = [_shown(fault, rows) for (fault, _), rows in self._first.items()]
            others = [f"and {self.count - MOST_SHOWN:,} more"] if self.count > MOST_SHOWN else []
            cures = dict.fromkeys("fix or remove them" if cure == FIX else cure for _, cure in self._first)
            raise InputError(
                f"{self.path} has {self.count:,} bad rows: {'; '.join(shown + others)}: {', or '.join(cures)}"
            )


def _shown(fault: str, rows: list[str]) -> str:
    shortened = fault if len(fault) <= LONGEST_FAULT else f"{fault[:LONGEST_FAULT]}…"
    if len(rows) == 1:
        return f"row {rows[0]}{_joined(shortened)}"
    return f"rows {', '.join(rows)}: {shortened.removeprefix(': ')}"


def _joined(fault: str) -> str:
    return fault if fault.startswith(":") else f" {fault}"
