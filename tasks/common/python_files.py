"""Functions of Python files that params.yaml names: run from that file alone, whatever is installed under its name."""

import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tasks.common.errors import InputError

LICENSE = "LICENSE"  # the name under which a file may state the licence of what its functions make


class _Loader(SourceFileLoader):
    """Leaves no __pycache__ beside the file: DVC follows the folder by content."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def is_python(source: str) -> bool:
    """Tell whether a source is a Python file."""
    return Path(source).suffix.lower() == ".py"


def load_module(path: Path) -> ModuleType:
    """Run a Python file as a module of its own, whose folder is not on the search path.

    Raises:
        InputError: the file is missing, is not valid Python, or raises an error; the sentence has file and line.
    """
    # Its name in sys.modules, where dataclasses look for it, is that of no other module.
    name = f"user_file_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]}"
    loader = _Loader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        code = loader.get_code(name)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: correct the path in params.yaml") from None
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise InputError(f"{path}{line} is not valid Python ({reason}): fix it") from None
    with errors_of(path):
        exec(code, module.__dict__)
    return module


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """Give a function of a Python file, which is run to define it.

    Raises:
        InputError: the file cannot be run (`load_module`), or defines no function of that name.
    """
    function = getattr(load_module(path), name, None)
    if not callable(function):
        raise InputError(f"{path} has no function {name}: define it, or name another file in params.yaml")
    found: Callable[..., Any] = function
    return found


def license_of(path: Path) -> dict[str, str]:
    """Give the licence that a Python file states for what it makes, as the Hugging Face hub spells it; or nothing.

    Raises:
        InputError: what it states is no name of a licence.
    """
    stated = getattr(load_module(path), LICENSE, None)
    if stated is None:
        return {}
    if not isinstance(stated, str) or not re.fullmatch(r"[a-z0-9.-]{1,60}", stated):
        raise InputError(
            f'{path}: {LICENSE} must be a name of the Hugging Face hub\'s, such as "apache-2.0": correct it'
        )
    return {"license": stated}


@contextmanager
def errors_of(path: Path, place: str = "", cure: str = "fix it") -> Iterator[None]:
    """Turn what a user's code raises into one sentence; lost connections and spent memory stay what they are.

    Args:
        path: the code's file, of which the sentence gives the last line that ran.
        place: which row the code was at, such as " after row 7".
        cure: what to do.

    Raises:
        InputError: the block raised an error.
    """
    try:
        yield
    except (InputError, MemoryError, ConnectionError, TimeoutError):
        raise
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f" line {lines[-1]}" if lines else ""
        raise InputError(f"{path}{line} raises {type(error).__name__}{place} ({error}): {cure}") from error
