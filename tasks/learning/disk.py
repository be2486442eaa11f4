"""A full disk told as what it is, whichever library was writing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise the system's own OSError, naming `path`, where a library hides it in an error of its own.

    torch chains it behind a RuntimeError; safetensors quotes its number in the text.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        quoted = re.search(r"(.*)\(os error (\d+)\)", str(error))
        if isinstance(error.__context__, OSError):
            raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error
        if quoted:
            raise OSError(int(quoted[2]), quoted[1].strip(), str(path)) from error
        raise
