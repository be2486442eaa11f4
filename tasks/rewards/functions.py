"""A reward function in a user's file: loaded from that file alone, called with what it asks for, and checked."""

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tasks.common.errors import InputError, quoted
from tasks.common.python_files import described, load_function
from tasks.rewards.answered import Answered

# What a function may have as parameters, by name, besides its options.
ARGUMENTS = ("prompts", "answers", "answer_ids", "references", "columns")
LARGEST = 3.0e38  # in size: scores are fp32


class FunctionReward:
    """A function of a file, as a reward."""

    def __init__(
        self, name: str, path: Path, function: str, source: str, options: Mapping[str, Any] | None = None
    ) -> None:
        """Load the function; its file's code runs.

        Args:
            name: under which its scores are reported.
            path: the file.
            function: its name there.
            source: what messages call it, as the user named it: path.py:function, or a verifier.
            options: further keyword arguments, the same at every call.

        Raises:
            InputError: there is no such file or function, its code fails, it asks for what there is not, or it does not
                take one of the options.
        """
        self._name, self._path, self.source, self._options = name, path, source, dict(options or {})
        self._function = _load(path, function, source)
        self.arguments = _arguments(self._function, source, self._options)

    @property
    def name(self) -> str:
        """The name under which its scores are reported."""
        return self._name

    def check_options(self) -> None:
        """Have a function score nothing, so that it says which of its options contradict each other.

        Raises:
            InputError: some do. A user's function need not know what to do without answers, and is not asked.
        """
        try:
            self._call(Answered([], [], [], [], []))
        except InputError as error:
            raise InputError(f"{self.source} cannot score: {error}") from None

    def __call__(self, answered: Answered) -> list[float]:
        """Score the answers.

        Raises:
            InputError: the function raises, or does not give one finite number an answer.
            ConnectionError, TimeoutError: a server that it asks is lost.
        """
        if not len(answered):
            return []
        try:
            found = self._call(answered)
        except (ConnectionError, TimeoutError):  # a judge's server: no fault of the function
            raise
        except Exception as error:
            raise self._failure(answered, error) from error
        return self._checked(found, answered)

    def _call(self, answered: Answered) -> object:
        # Copies, because a function that changes what it is given would change it for all that come after.
        given = {name: copy.deepcopy(list(getattr(answered, name))) for name in self.arguments}
        return self._function(**given, **copy.deepcopy(self._options))

    def _failure(self, answered: Answered, error: Exception) -> InputError:
        """Find the answer that a function fails at: alone, one after the other, for it was given all at once."""
        row = "when it was given several answers at once"
        for index in range(len(answered)):
            try:
                self._call(answered.at(index))
            except Exception as alone:
                row, error = _row(answered, index), alone
                break
        if isinstance(error, InputError):  # its own sentence, of what the row or an option lacks
            return InputError(f"{self.source} cannot score{row.removeprefix('for')}: {error}")
        cure = "fix the function, or take it out of rewards in params.yaml (docs/rewards.md)"
        return InputError(f"{self.source} raised {described(error, self._path)} {row}: {cure}")

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


def _load(path: Path, function: str, source: str) -> Callable[..., object]:
    found = load_function(path, function, source)
    if inspect.iscoroutinefunction(found):
        raise InputError(f"{source} is asynchronous: write a plain function (def)")
    return found


def _arguments(function: Callable[..., object], source: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The arguments a function asks for; its other parameters must have a value, from the options or of their own."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    given = f"a reward is given by name: {', '.join(ARGUMENTS)}"
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise InputError(f"{source} does not say what it takes: write it as a function (def)") from None
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    asked = [each for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD]
    for each in asked:
        has_value = each.name in (*ARGUMENTS, *options) or each.default is not inspect.Parameter.empty
        if each.kind not in named or not has_value:
            raise InputError(f"{source} asks for {each.name}, which is not among its options, but {given}")
    if not takes_all and not any(each.name in ARGUMENTS for each in asked):
        raise InputError(f"{source} asks for nothing, but {given}")
    _check_options(options, source, {each.name: each.annotation for each in asked}, takes_all)
    return ARGUMENTS if takes_all else tuple(each.name for each in asked if each.name in ARGUMENTS)


def _check_options(options: Mapping[str, Any], source: str, types: Mapping[str, object], takes_all: bool) -> None:
    """Refuse options that a function does not take, or whose values are not of the types that it states."""
    taken = ", ".join(name for name in types if name not in ARGUMENTS) or "none"
    for name, value in options.items():
        if name in ARGUMENTS:
            raise InputError(f"{source} has {name} as an option, but every reward is given that: rename the option")
        if not takes_all and name not in types:
            raise InputError(f"{source} has no option {quoted(name)}, but {taken}: correct it in params.yaml")
        stated = types.get(name, inspect.Parameter.empty)
        if stated is not inspect.Parameter.empty and not isinstance(stated, str):  # a text names a type unseen
            _check_type(value, stated, f"{source}: the option {name} is {quoted(value)}")


def _check_type(value: object, stated: Any, shown: str) -> None:  # noqa: ANN401 - any type
    try:
        TypeAdapter[object](stated, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError as error:
        raise InputError(f"{shown}, but {error.errors()[0]['msg']}: correct it in params.yaml") from None


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
