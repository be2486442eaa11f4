"""InputError, for what the user must fix, and recognising errors of the machine."""

import os
import re

from tasks.common.safe_text import quoted, sentence

__all__ = ["InputError", "is_out_of_memory", "is_process_group_lost", "quoted", "system_error"]


class InputError(Exception):
    """Input, settings or an environment that a person must fix.

    The message is one sentence with the file, the row if there is one, and the cure; quoted text is made safe to show
    (tasks/common/safe_text.py). A stage that raises it prints the message, leaves earlier outputs as they were and
    exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(sentence(message))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory was exhausted, of the machine or its accelerator; torch need not be imported."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch's, for every accelerator
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def is_process_group_lost(error: BaseException) -> bool:
    """Return whether another process of a distributed training cannot be reached; torch need not be imported."""
    named = any(kind.__name__ == "DistError" for kind in type(error).__mro__)  # torch's, of NCCL and of the rendezvous
    return named or (isinstance(error, RuntimeError) and "gloo" in str(error))


def system_error(error: BaseException) -> OSError | None:
    """Return the OSError behind a library's error: torch chains it, safetensors quotes its number."""
    if isinstance(error, OSError):
        return error
    hidden = error.__cause__ or error.__context__
    if isinstance(hidden, OSError):
        return OSError(hidden.errno, hidden.strerror)
    quoted_number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(quoted_number[1]), os.strerror(int(quoted_number[1]))) if quoted_number else None
