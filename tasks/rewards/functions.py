"""A reward function in a user's file: loaded from that file alone, called with what it asks for, held to its word."""

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

from tasks.common.errors import InputError, quoted
from tasks.common.python_files import described, load_function
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
        self._function = _load(path, function, source)
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
