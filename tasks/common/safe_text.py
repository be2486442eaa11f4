"""Making text safe to show: one line, bounded length, no control characters, no secrets.

Text quoted in a message may come from a file of megabytes, a server's answer or an address with a password.
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
from urllib.parse import quote, unquote

from tasks.common.escapes import one_line, visible

LONGEST_SENTENCE, LONGEST_END, LONGEST_VALUE = 4_000, 1_000, 100  # characters
HIDDEN = "…"
ADDRESSES = "TRUELINE_NOTIFY"  # whose addresses are secrets, also without a password
NAMED_SECRET = "prefect-secret://"  # in its place: the name of a secret that a Prefect server keeps
SHORTEST_SECRET = 6  # characters: a shorter one may be any word, and is removed from addresses alone
SHORTEST_TOKEN = 12  # the same of a part of an address of notifications, which may be a plain word
_HOST = re.compile(r"(?:[\w-]{1,63}\.)+[\w-]{1,24}|localhost|\d+", re.IGNORECASE)
# In an address: user and password, and the query. Elsewhere: values whose name marks them as secret.
_USER = re.compile(r"(?<=://)[^\s'\"<>/]*@")
_QUERY = re.compile(r"(://(?:(?!://)[^\s'\"<>?])*\?)[^\s'\"<>#)]*[^\s'\"<>#):;,.]")
_HEADER = re.compile(r"(authorization['\"]?\s*[:=]\s*b?['\"]?)(?:\w+ +)?[^\s'\"]+", re.IGNORECASE)
_NAMED = re.compile(r"\b((?:(?:ssl)?password|passwd|token|secret|api_?key)=)[^\s'\"&;,)]+", re.IGNORECASE)
# Variables with a secret; addresses with a password in any variable. A password may contain a slash or an @.
_NAME_OF_A_SECRET = re.compile(
    r"((^|_)(API_?KEY|ACCESS_KEY|ACCOUNT_KEY|STORAGE_KEY|TOKEN|(PG)?PASSWORD|PASSWD|SECRET|AUTH_STRING)|_PWD)$",
    re.IGNORECASE,
)
_USER_AND_PASSWORD = re.compile(r"://([^\s:/@]*):(.+)@")


def sentence(text: str) -> str:
    """Return a text as one line that is safe to show.

    A long text loses its middle: the start says where the fault is, the end how to fix it.
    """
    clean = " ".join(without_secrets(text).split("\n"))
    length = len(clean) if len(clean) > LONGEST_SENTENCE else len(one_line(clean))
    if length <= LONGEST_SENTENCE:
        return one_line(clean)
    beginning, end = clean[: LONGEST_SENTENCE - LONGEST_END], clean[-LONGEST_END:]
    left_out = f" {HIDDEN} ({length - LONGEST_SENTENCE:,} characters left out) {HIDDEN} "
    return f"{one_line(beginning)[: len(beginning)]}{left_out}{one_line(end)[-LONGEST_END:]}"


def quoted(value: object) -> str:
    """Return the repr of a value for a message, of about `LONGEST_VALUE` characters at most."""
    if isinstance(value, str) and len(value) > LONGEST_VALUE:
        return f"{value[:LONGEST_VALUE]!r}{HIDDEN} ({len(value):,} characters)"
    writer = reprlib.Repr()
    writer.maxstring = writer.maxother = LONGEST_VALUE + 2
    try:
        return shortened(writer.repr(value), LONGEST_VALUE + 2)
    except ValueError:  # Python refuses to write numbers with too many digits
        return f"a {type(value).__name__} with a number of over {sys.get_int_max_str_digits():,} digits"


def shortened(text: str, longest: int) -> str:
    """Remove the middle of a text of more than `longest` characters."""
    end = longest // 2
    return text if len(text) <= longest else f"{text[: longest - end - 1]}{HIDDEN}{text[-end:]}"


def without_secrets(text: str) -> str:
    """Remove user, password and query of addresses, and every secret in the environment."""
    if secrets := _secrets(tuple(os.environ.items())):
        text = secrets.sub(HIDDEN, text)
    text = _QUERY.sub(rf"\g<1>{HIDDEN}", _USER.sub("", text))
    return _NAMED.sub(rf"\g<1>{HIDDEN}", _HEADER.sub(rf"\g<1>{HIDDEN}", text))


def names_secret(variable: str) -> bool:
    """Tell whether a variable's name says that its value is a secret."""
    return _NAME_OF_A_SECRET.search(variable) is not None


def clean_logs() -> None:
    """Remove secrets and control characters from all log records of this process."""
    made = logging.getLogRecordFactory()
    if getattr(made, "cleans", False):
        return

    def clean(*arguments: object, **named: object) -> logging.LogRecord:
        return _cleaned(made(*arguments, **named))

    clean.cleans = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(clean)


def clean_traceback() -> None:
    """Remove secrets from the traceback that this process may end with."""
    sys.excepthook = lambda _kind, error, _trace: print(_traceback_of(error), file=sys.stderr)


def _cleaned(record: logging.LogRecord) -> logging.LogRecord:
    try:
        message = record.getMessage()
    except (TypeError, ValueError, LookupError):  # logging reports it when the record is written
        return record
    cleaned = visible(without_secrets(message))
    if cleaned != message:
        record.msg, record.args = cleaned, None
    if record.exc_info and record.exc_info[1]:
        record.exc_text = _traceback_of(record.exc_info[1])  # formatters use this text as it is
    return record


def _traceback_of(error: BaseException) -> str:
    return visible(without_secrets("".join(traceback.format_exception(error)).rstrip("\n")))


@lru_cache(maxsize=4)
def _secrets(variables: tuple[tuple[str, str], ...]) -> re.Pattern[str] | None:
    """Return what finds the secrets in variables, as written there and as encoded in requests and messages.

    The longest comes first. A secret of letters alone is found as a word: `postgres` is a part of `postgresql`.
    """
    found = {spelling for name, value in variables for spelling in _secrets_of(name, value.strip())}
    longest_first = sorted((each for each in found if len(each) >= SHORTEST_SECRET), key=len, reverse=True)
    patterns = [rf"(?<!\w){each}(?!\w)" if each.isalpha() else re.escape(each) for each in longest_first]
    return re.compile("|".join(patterns)) if patterns else None


def secret_parts(address: str) -> Iterator[str]:
    """Give an address of notifications, and each part of it that may be a secret: whatever is not its host."""
    yield address
    for part in re.split(r"[/:@?&=#,]+", address.partition("://")[2]):
        if not _HOST.fullmatch(part):
            yield from (part, unquote(part))


def _secrets_of(name: str, value: str) -> Iterator[str]:
    if name == ADDRESSES:
        for address in (each for each in value.split() if not each.startswith(NAMED_SECRET)):
            yield from (part for part in secret_parts(address) if len(part) >= SHORTEST_TOKEN)
    if names_secret(name):
        yield from (value, quote(value, safe=""))
    if parts := _USER_AND_PASSWORD.search(value):
        user, password = parts.groups()
        yield from (password, unquote(password), base64.b64encode(unquote(f"{user}:{password}").encode()).decode())
