"""The one error that is the user's to mend."""


class InputError(Exception):
    """Input, settings or surroundings that a person must mend.

    The message is one sentence that names the file, the row where there is one, and the cure.
    A stage that raises it prints the sentence, leaves earlier outputs as they were and exits with code 2.
    """
