"""Reporting a full disk as such, whichever library was writing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.common.errors import system_error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise an OSError with `path`, also if a library wraps the system's error in its own."""
    try:
        yield
    except Exception as error:
        hidden = system_error(error)
        if hidden is None:
            raise
        raise OSError(hidden.errno, hidden.strerror, str(path)) from error
