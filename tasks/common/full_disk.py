"""A full disk told as what it is, whichever library was writing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.common.errors import error_of_the_system


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise the system's own OSError, naming `path`, also where a library hides it in an error of its own."""
    try:
        yield
    except Exception as error:
        hidden = error_of_the_system(error)
        if hidden is None:
            raise
        raise OSError(hidden.errno, hidden.strerror, str(path)) from error
