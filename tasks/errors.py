"""The one error that is the user's to mend, and one of the machine's."""

from tasks.shown import quoted, sentence

__all__ = ["InputError", "is_company_lost", "is_out_of_memory", "quoted"]


class InputError(Exception):
    """Input, settings or surroundings that a person must mend.

    The message is one sentence that names the file, the row where there is one, and the cure; it is made fit to be
    shown (tasks/shown.py), whatever it quotes.
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
