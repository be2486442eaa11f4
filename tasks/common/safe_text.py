"""Text as it may be shown: in one line, of bounded length, without control characters and without secrets.

What a message quotes comes from anywhere: a file of megabytes, a server's answer, an address that holds a password.
"""

import base64
import logging
import os
import re
import reprlib
import sys
import traceback
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote

from tasks.common.escapes import one_line, visible

LONGEST_SENTENCE, LONGEST_END, LONGEST_VALUE = 4_000, 1_000, 100  # characters
HIDDEN = "…"
SHORTEST_SECRET = 6  # characters: a shorter one may be any word, and is taken out of addresses alone
# In an address: user and password, and what follows a question mark. Elsewhere: what its name tells to be a secret.
_USER = re.compile(r"(?<=://)[^\s'\"<>/]*@")
_QUERY = re.compile(r"(://(?:(?!://)[^\s'\"<>?])*\?)[^\s'\"<>#)]*[^\s'\"<>#):;,.]")
_HEADER = re.compile(r"(authorization['\"]?\s*[:=]\s*b?['\"]?)(?:\w+ +)?[^\s'\"]+", re.IGNORECASE)
_NAMED = re.compile(r"\b((?:password|passwd|token|secret|api_?key)=)[^\s'\"&;,)]+", re.IGNORECASE)
# Variables that hold a secret, and addresses in any variable that hold a password, which may hold a slash or an @.
_NAME_OF_A_SECRET = re.compile(r"(^|_)(API_?KEY|ACCESS_KEY|TOKEN|PASSWORD|PASSWD|SECRET|AUTH_STRING)$", re.IGNORECASE)
_USER_AND_PASSWORD = re.compile(r"://([^\s:/@]*):(.+)@")


def sentence(text: str) -> str:
    """Give a text as one line that anybody may read.

    Of a long one the middle is left out: its beginning says where, its end how to mend it.
    """
    clean = " ".join(without_secrets(text).split("\n"))
    length = len(clean) if len(clean) > LONGEST_SENTENCE else len(one_line(clean))
    if length <= LONGEST_SENTENCE:
        return one_line(clean)
    beginning, end = clean[: LONGEST_SENTENCE - LONGEST_END], clean[-LONGEST_END:]
    left_out = f" {HIDDEN} ({length - LONGEST_SENTENCE:,} characters left out) {HIDDEN} "
    return f"{one_line(beginning)[: len(beginning)]}{left_out}{one_line(end)[-LONGEST_END:]}"


def quoted(value: object) -> str:
    """Give a value as a message quotes it: as Python writes it, and not much more than `LONGEST_VALUE` characters."""
    if isinstance(value, str) and len(value) > LONGEST_VALUE:
        return f"{value[:LONGEST_VALUE]!r}{HIDDEN} ({len(value):,} characters)"
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = LONGEST_VALUE + 2
    try:
        return shortened(writer.repr(value), LONGEST_VALUE + 2)
    except ValueError:  # Python writes no number of more digits than it would read
        return f"a {type(value).__name__} with a number of over {sys.get_int_max_str_digits():,} digits"


def shortened(text: str, longest: int) -> str:
    """Leave out the middle of a text of more than `longest` characters."""
    end = longest // 2
    return text if len(text) <= longest else f"{text[: longest - end - 1]}{HIDDEN}{text[-end:]}"


def without_secrets(text: str) -> str:
    """Take out user and password of addresses, their queries, and every secret of the environment."""
    for secret in _secrets(tuple(os.environ.items())):
        text = text.replace(secret, HIDDEN)
    text = _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub("", text))
    return _NAMED.sub(rf"\g<1>{HIDDEN}", _HEADER.sub(rf"\g<1>{HIDDEN}", text))


def clean_logs() -> None:
    """Take secrets, and what acts on a terminal, out of all that this process logs."""
    made = logging.getLogRecordFactory()
    if getattr(made, "cleans", False):
        return

    def clean(*arguments: object, **named: object) -> logging.LogRecord:
        return _cleaned(made(*arguments, **named))

    clean.cleans = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(clean)


def clean_traceback() -> None:
    """Take secrets out of the traceback that this process may end with."""
    sys.excepthook = lambda _kind, error, _trace: print(_traceback_of(error), file=sys.stderr)


def _cleaned(record: logging.LogRecord) -> logging.LogRecord:
    try:
        message = record.getMessage()
    except (TypeError, ValueError, LookupError):  # logging says so itself where it is written
        return record
    cleaned = visible(without_secrets(message))
    if cleaned != message:
        record.msg, record.args = cleaned, None
    if record.exc_info and record.exc_info[1]:
        record.exc_text = _traceback_of(record.exc_info[1])  # which every formatter takes as it is
    return record


def _traceback_of(error: BaseException) -> str:
    return visible(without_secrets("".join(traceback.format_exception(error)).rstrip("\n")))


@lru_cache(maxsize=4)
def _secrets(variables: tuple[tuple[str, str], ...]) -> list[str]:
    """The secrets in variables, longest first, as they stand there and as requests and messages spell them."""
    found = {spelling for name, value in variables for spelling in _secrets_of(name, value.strip())}
    return sorted((each for each in found if len(each) >= SHORTEST_SECRET), key=len, reverse=True)


def _secrets_of(name: str, value: str) -> Iterator[str]:
    if _NAME_OF_A_SECRET.search(name):
        yield value
    if parts := _USER_AND_PASSWORD.search(value):
        user, password = parts.groups()
        yield from (password, unquote(password), base64.b64encode(unquote(f"{user}:{password}").encode()).decode())
