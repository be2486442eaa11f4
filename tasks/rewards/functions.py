"""A reward function in a user's file: loaded from that file alone, called with what it asks for, held to its word."""

import copy
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, ModuleType

from tasks.common.errors import InputError, quoted
from tasks.rewards.answered import Answered

# What a function may have as parameters, by name.
ARGUMENTS = ("prompts", "answers", "answer_ids", "references", "columns")
LARGEST = 3.0e38  # in size: scores are fp32


class FunctionReward:
    """A function of a file, as a reward."""

    def __init__(self, name: str, path: Path, function: str, source: str) -> None:
        """Load the function; its file's code runs.

        Args:
            name: under which its scores are reported.
            path: the file.
            function: its name there.
            source: what messages call it: path.py:function, as the user named it.

        Raises:
            InputError: there is no such file or function, its code fails, or it asks for what there is not.
        """
        self._name, self._path, self.source = name, path, source
        self._function = _load(name, path, function, source)
        self.arguments = _arguments(self._function, source)

    @property
    def name(self) -> str:
        """The name under which its scores are reported."""
        return self._name

    def __call__(self, answered: Answered) -> list[float]:
        """Score the answers.

        Raises:
            InputError: the function raises, or does not give one finite number an answer.
        """
        if not len(answered):
            return []
        try:
            found = self._call(answered)
        except Exception as error:
            raise self._failure(answered, error) from error
        return self._checked(found, answered)

    def _call(self, answered: Answered) -> object:
        # Copies, because a function that changes what it is given would change it for all that come after.
        return self._function(**{name: copy.deepcopy(list(getattr(answered, name))) for name in self.arguments})

    def _failure(self, answered: Answered, error: Exception) -> InputError:
        """Find the answer that a function fails at: alone, one after the other, for it was given all at once."""
        row = "when it was given several answers at once"
        for index in range(len(answered)):
            try:
                self._call(answered.at(index))
            except Exception as alone:
                row, error = _row(answered, index), alone
                break
        return InputError(
            f"{self.source} raised {described(error, self._path)} {row}: fix the function (docs/rewards.md)"
        )

    def _checked(self, found: object, answered: Answered) -> list[float]:
        cure = "return a list with one number an answer"
        if isinstance(found, str | bytes | Mapping | set) or not hasattr(found, "__iter__"):
            raise InputError(f"{self.source} gave {quoted(found)} for {len(answered)} answers: {cure}")
        values = list(found)
        if len(values) != len(answered):
            raise InputError(f"{self.source} gave {len(values)} numbers for {len(answered)} answers: {cure}")
        numbers = [_number(value) for value in values]
        for index, number in enumerate(numbers):
            if number is None or not abs(number) <= LARGEST:  # so written, NaN does not pass
                row = _row(answered, index)
                raise InputError(f"{self.source} gave {quoted(values[index])} {row}: return finite numbers")
        return [number for number in numbers if number is not None]


def described(error: BaseException, path: Path) -> str:
    """Name an error and the line of a file that it came from, where it came from there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    text = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".removesuffix(": ")
    return f"{text} (line {line})" if line else text


def _load(name: str, path: Path, function: str, source: str) -> Callable[..., object]:
    try:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except FileNotFoundError:
        raise InputError(f"{source} does not exist: fix rewards in params.yaml") from None
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror}): fix rewards in params.yaml") from None
    except (SyntaxError, ValueError) as error:  # of null bytes, or of bytes that are no UTF-8
        raise InputError(f"{source} is no Python file, {described(error, path)}: fix it") from None
    found: Callable[..., object] | None = getattr(_module(name, path, code, source), function, None)
    if found is None or not callable(found):
        raise InputError(f"{source} has no such function: fix the name in params.yaml, or write the function")
    if inspect.iscoroutinefunction(found):
        raise InputError(f"{source} is asynchronous: write a plain function (def)")
    return found


def _module(name: str, path: Path, code: CodeType, source: str) -> ModuleType:
    """Run the file as a module that no import finds: nothing is put on the path, and no bytecode beside the file."""
    spec = importlib.util.spec_from_file_location(f"reward_functions.{path.parent.name}.{name}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        cure = "fix it, or install what it needs" if isinstance(error, ImportError) else "fix it"
        raise InputError(f"{source} cannot be loaded, {described(error, path)}: {cure} (docs/rewards.md)") from error
    return module


def _arguments(function: Callable[..., object], source: str) -> tuple[str, ...]:
    """The arguments a function asks for."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise InputError(f"{source} does not say what it takes: write it as a function (def)") from None
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    asked = [each for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]
    if wrong := [each.name for each in asked if each.name not in ARGUMENTS or each.kind not in named]:
        raise InputError(f"{source} asks for {wrong[0]}, but a reward is given by name: {', '.join(ARGUMENTS)}")
    if not takes_all and not asked:
        raise InputError(f"{source} asks for nothing, but a reward is given by name: {', '.join(ARGUMENTS)}")
    return ARGUMENTS if takes_all else tuple(each.name for each in asked)


def _number(value: object) -> float | None:
    if isinstance(value, str | bytes):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def _row(answered: Answered, index: int) -> str:
    of_prompt = f"of prompt {answered.ids[index]}" if answered.ids else f"number {index + 1}"
    return f"for the answer {of_prompt} ({quoted(answered.answers[index])})"
