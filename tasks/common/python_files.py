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


def load_module(path: Path, shown: str = "") -> ModuleType:
    """Run a Python file as a module of its own, whose folder is not on the search path.

    Args:
        path: the file.
        shown: what messages call it, where that is not its path.

    Raises:
        InputError: the file is missing, is not valid Python, or raises an error; the sentence has its line.
    """
    shown = shown or str(path)
    # Its name in sys.modules, where dataclasses look for it, is that of no other module.
    name = f"user_file_{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]}"
    loader = _Loader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    try:
        code = loader.get_code(name)
    except FileNotFoundError:
        raise InputError(f"{shown} does not exist: correct its name in params.yaml") from None
    except OSError as error:
        raise InputError(f"{shown} cannot be read ({error.strerror}): correct its name in params.yaml") from None
    except (SyntaxError, ValueError) as error:  # ValueError: a null byte
        raise InputError(f"{shown} is no Python file, {described(error, path)}: fix it") from None
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        cure = "fix it, or install what it needs" if isinstance(error, ImportError) else "fix it"
        raise InputError(f"{shown} cannot be loaded, {described(error, path)}: {cure}") from error
    return module


def load_function(path: Path, name: str, shown: str = "") -> Callable[..., Any]:
    """Give a function of a Python file, which is run to define it.

    Args:
        path: the file.
        name: of the function.
        shown: what messages call it, where that is not path.py:function.

    Raises:
        InputError: the file cannot be run (`load_module`), or defines no function of that name.
    """
    shown = shown or f"{path}:{name}"
    function = getattr(load_module(path, shown), name, None)
    if not callable(function):
        raise InputError(f"{shown} has no such function: write it, or correct the name in params.yaml")
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


def described(error: BaseException, path: Path) -> str:
    """Name an error and the line of a file that it came from, where it came from there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".removesuffix(": ")
    return f"{text} (line {line})" if line else text


@contextmanager
def errors_of(path: Path, shown: str, cure: str) -> Iterator[None]:
    """Turn what a function of a file raises into one sentence; lost connections and spent memory stay what they are.

    Args:
        path: the file, of which the sentence gives the last line that ran.
        shown: the function, as messages call it, and which row it was at.
        cure: what to do.

    Raises:
        InputError: the block raised an error.
    """
    try:
        yield
    except (InputError, MemoryError, ConnectionError, TimeoutError):
        raise
    except Exception as error:
        raise InputError(f"{shown} raised {described(error, path)}: {cure}") from error
