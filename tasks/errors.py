"""The one error that is the user's to mend, and one of the machine's."""

import re

# A message may quote a value of any size: its beginning says where, its end how to mend it.
LONGEST_MESSAGE, LONGEST_END = 4000, 1000
LONGEST_QUOTED = 100
# What a terminal would obey and a reader not see: control characters, marks of direction, halves of characters.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(Exception):
    """Input, settings or surroundings that a person must mend.

    The message is one sentence that names the file, the row where there is one, and the cure.
    A stage that raises it prints the sentence, leaves earlier outputs as they were and exits with code 2.
    Whatever it quotes, it is of at most `LONGEST_MESSAGE` characters, and none of them acts on a terminal.
    """

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST_MESSAGE:
            beginning = message[: LONGEST_MESSAGE - LONGEST_END]
            left_out = len(message) - LONGEST_MESSAGE
            message = f"{beginning} … ({left_out:,} characters left out) … {message[-LONGEST_END:]}"
        super().__init__(UNSEEN.sub(lambda found: ascii(found[0])[1:-1], message))


def quoted(value: object) -> str:
    """Show a value in a message: as Python writes it, and at most `LONGEST_QUOTED` characters of it."""
    if isinstance(value, str) and len(value) > LONGEST_QUOTED:
        return f"{value[:LONGEST_QUOTED]!r}… ({len(value):,} characters)"
    shown = repr(value)
    return shown if len(shown) <= LONGEST_QUOTED + 2 else f"{shown[:LONGEST_QUOTED]}…"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory did not suffice, of the machine or of its accelerator; torch need not have been loaded."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch's, for every accelerator
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def is_company_lost(error: BaseException) -> bool:
    """Tell whether a process cannot reach another that trains with it; torch need not have been loaded."""
    named = any(kind.__name__ == "DistError" for kind in type(error).__mro__)  # torch's, of NCCL and of meeting
    return named or (isinstance(error, RuntimeError) and "gloo" in str(error))
