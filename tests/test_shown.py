"""What a message quotes is made fit to be shown: one line, bounded, harmless to a terminal, without secrets."""

import base64
import logging
import subprocess
import sys
import time

import pytest

from tasks.common.errors import InputError
from tasks.common.safe_text import LONGEST_SENTENCE, LONGEST_VALUE, clean_logs, quoted, sentence, without_secrets
from tasks.stage import classify


def test_a_sentence_that_quotes_five_megabytes_keeps_its_beginning_and_its_cure() -> None:
    message = str(InputError(f"raw.csv row 3 holds {'x' * 5_000_000}: fix it"))
    assert len(message) < LONGEST_SENTENCE + 50
    assert message.startswith("raw.csv row 3 holds xxx")
    assert message.endswith("xxx: fix it")


@pytest.mark.parametrize("part", ["://", "://a@", "://?", "authorization:", "password=", " ", "\n", "\x1b"])
def test_no_text_is_looked_through_for_long(part: str) -> None:
    started = time.process_time()
    InputError(part * (5_000_000 // len(part)))
    assert time.process_time() - started < 20


def test_a_bug_is_noted_within_bounds() -> None:
    kind, message = classify(ValueError("x" * 5_000_000))
    assert kind == "bug"
    assert len(message) < LONGEST_SENTENCE + 50


def test_a_terminal_has_nothing_to_act_on() -> None:
    assert str(InputError("a\x1b[31mred\x07\r\u202eb\x9b\x00: fix it")) == (
        r"a\x1b[31mred\x07\r\u202eb\x9b\x00: fix it"
    )
    assert str(InputError("first\nsecond: Größe 😀")) == "first second: Größe 😀"


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, ["y"] * 10**6, {"a": {"b": ["z" * 10**6] * 9}}, 10**4000, 10**5000, [10**5000], b"\0" * 10**6],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_quoted_within_bounds(value: object) -> None:
    assert len(quoted(value)) < 5 * LONGEST_VALUE  # every character of it may be an escape


def test_a_short_value_is_quoted_as_python_writes_it() -> None:
    assert [quoted(value) for value in ("three", 2.0, True, None, [1, "a"])] == [
        "'three'",
        "2.0",
        "True",
        "None",
        "[1, 'a']",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hush@host:5000/a is away", "http://host:5000/a is away"),
        ("'postgresql://me:hu@sh@host/db'", "'postgresql://host/db'"),
        ("http://hushhush@host", "http://host"),
        ("https://host/a?sig=hush&b=1#here, or", "https://host/a?…#here, or"),
        ("postgresql://host/db?user=me&password=hush: fix it", "postgresql://host/db?…: fix it"),
        ("{'Authorization': 'Basic aHVzaA=='}", "{'Authorization': '…'}"),
        ("host=h password=hush user=me", "host=h password=… user=me"),
        ("sslmode=require sslpassword=hush", "sslmode=require sslpassword=…"),
        ("eos_token=<|im_end|>", "eos_token=<|im_end|>"),
        ("http://host/a/b@c mail me@host", "http://host/a/b@c mail me@host"),
    ],
)
def test_an_address_shows_no_secret(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert sentence(text) == shown


def test_no_secret_of_the_environment_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUELINE_JUDGE_API_KEY", "sk-very-secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hush%2Fha/sh@host/db")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")  # a variable whose name only looks like a secret's
    basic = base64.b64encode(b"me:hush/ha/sh").decode()
    assert without_secrets(f"sk-very-secret {basic} hush/ha/sh parallel") == "… … … parallel"
    assert without_secrets("could not parse postgresql://me:hush%2Fha/sh@host/db") == (
        "could not parse postgresql://host/db"
    )


def test_a_secret_that_is_a_word_is_left_in_longer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "postgres")
    monkeypatch.setenv("PWD", "/home/me/work")  # the working folder, and no secret
    assert without_secrets("postgresql://postgres@host refuses postgres in /home/me/work") == (
        "postgresql://host refuses … in /home/me/work"
    )


LOGS = r"""
import logging, sys
from tasks.common.safe_text import clean_logs, clean_traceback
clean_logs()
clean_logs()
clean_traceback()
logging.basicConfig(level="INFO", format="%(message)s")
logger = logging.getLogger("some.library")
logger.info("asks %s", "http://me:hush@host")
logger.info("row \x1b[2J\u202e left out")
logger.info("nothing to hide in %d%%", 7)
logger.info("wrong %d", "text")
try:
    raise ConnectionError("http://me:hush@host is away")
except ConnectionError:
    logger.exception("it failed")
raise ValueError("http://me:hush@host ends\x9b all")
"""


def test_neither_logs_nor_the_last_traceback_show_a_secret() -> None:
    done = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "hush" not in done.stdout + done.stderr
    for message in (
        "asks http://host\n",
        "row \\x1b[2J\\u202e left out\n",
        "nothing to hide in 7%\n",
        "ConnectionError: http://host is away\n",
    ):
        assert message in done.stderr
    assert done.stderr.endswith("ValueError: http://host ends\\x9b all\n")


def test_logs_are_cleaned_in_this_process_too() -> None:
    before = logging.getLogRecordFactory()
    try:
        clean_logs()
        record = logging.getLogger("a").makeRecord("a", 20, "f", 1, "at %s", ("http://me:hush@host",), None)
        assert record.getMessage() == "at http://host"
    finally:
        logging.setLogRecordFactory(before)
