"""The one error that is the user's to mend, and one of the machine's."""

import os
import re

from tasks.common.safe_text import quoted, sentence

__all__ = ["InputError", "error_of_the_system", "is_company_lost", "is_out_of_memory", "quoted"]


class InputError(Exception):
    """Input, settings or surroundings that a person must mend.

    The message is one sentence that names the file, the row where there is one, and the cure; it is made fit to be
    shown (tasks/common/safe_text.py), whatever it quotes.
    A stage that raises it prints the sentence, leaves earlier outputs as they were and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory did not suffice, of the machine or of its accelerator; torch need not have been loaded."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch's, for every accelerator
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def is_company_lost(error: BaseException) -> bool:
    """Tell whether a process cannot reach another that trains with it; torch need not have been loaded."""
    named = any(kind.__name__ == "DistError" for kind in type(error).__mro__)  # torch's, of NCCL and of meeting
    return named or (isinstance(error, RuntimeError) and "gloo" in str(error))


def error_of_the_system(error: BaseException) -> OSError | None:
    """Give the system's error that a library hides in its own: torch behind it, safetensors by number in its text."""
    if isinstance(error, OSError):
        return error
    hidden = error.__cause__ or error.__context__
    if isinstance(hidden, OSError):
        return OSError(hidden.errno, hidden.strerror)
    quoted_number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(quoted_number[1]), os.strerror(int(quoted_number[1]))) if quoted_number else None
