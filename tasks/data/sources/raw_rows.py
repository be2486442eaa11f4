"""Raw rows as a source holds them, and those among them that must be mended."""

from typing import Any, NamedTuple

from tasks.common.errors import InputError

MOST_TOLD = 10
LONGEST_FAULT = 250  # characters of one of several
# Bytes of a row in any format: a file that holds a longer one is not what its name says, or was made to do harm.
LONGEST_ROW = 2**26
MEND = "mend or remove the row"


class RawRow(NamedTuple):
    """A row as the source holds it."""

    row: int  # where a person finds it
    fields: dict[str, Any]


class Unreadable(NamedTuple):
    """Stands for a value that Python cannot hold, such as a date after the year 9999: it harms only who uses it."""

    reason: str


class BadRows:
    """The rows of a file that must be mended: all are counted, the first ten told in one sentence."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.count = 0
        self._first: dict[tuple[str, str], list[str]] = {}  # the places of the first rows by their fault and its cure

    def add(self, place: int | str, fault: str, cure: str = MEND) -> None:
        """Note a row that cannot be read.

        Args:
            place: the number of the row, with what else helps to find it.
            fault: what is to be said after the place, from a colon or a verb on.
            cure: what to do.
        """
        self.count += 1
        if self.count <= MOST_TOLD:
            self._first.setdefault((fault, cure), []).append(str(place))

    def stop(self) -> None:
        """End the reading of the file.

        Raises:
            InputError: a row was noted.
        """
        if self.count == 1:
            [((fault, cure), [place])] = self._first.items()
            raise InputError(f"{self.path} row {place}{_joined(fault)}: {cure}")
        if self.count:
            told = [_told(fault, places) for (fault, _), places in self._first.items()]
            others = [f"and {self.count - MOST_TOLD:,} more"] if self.count > MOST_TOLD else []
            cures = dict.fromkeys("mend or remove them" if cure == MEND else cure for _, cure in self._first)
            raise InputError(
                f"{self.path} has {self.count:,} bad rows: {'; '.join(told + others)}: {', or '.join(cures)}"
            )


def _told(fault: str, places: list[str]) -> str:
    shown = fault if len(fault) <= LONGEST_FAULT else f"{fault[:LONGEST_FAULT]}…"
    if len(places) == 1:
        return f"row {places[0]}{_joined(shown)}"
    return f"rows {', '.join(places)}: {shown.removeprefix(': ')}"


def _joined(fault: str) -> str:
    return fault if fault.startswith(":") else f" {fault}"
