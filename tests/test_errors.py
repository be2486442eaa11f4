"""A message is one that a person can read, whatever it quotes."""

import pytest

from tasks.errors import LONGEST_MESSAGE, InputError, quoted


def test_a_short_message_is_as_it_was_written():
    said = "a.jsonl row 3: the naïve “answer”\tis 1\u00a0000 €: mend it"
    assert str(InputError(said)) == said


def test_of_a_long_message_place_and_cure_are_left():
    said = str(InputError(f"a.jsonl row 3: {'x' * 5_000_000}: mend or remove the row"))
    assert said.startswith("a.jsonl row 3: xxx")
    assert said.endswith("xxx: mend or remove the row")
    assert "… (4,996,039 characters left out) …" in said  # 15 and 24 around it, and 4,000 in all stay
    assert len(said) < LONGEST_MESSAGE + 100


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\rb", r"a\rb"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202eevil", r"\u202eevil"),
        ("half \ud800", r"half \ud800"),
        ("\x00", r"\x00"),
    ],
)
def test_nothing_acts_on_a_terminal(written, shown):
    assert str(InputError(written)) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a'b", '"a\'b"'),
        ("x" * 100, f"'{'x' * 100}'"),
        ("x" * 5_000_000, f"'{'x' * 100}'… (5,000,000 characters)"),
        ([1] * 1000, f"{str([1] * 34)[:100]}…"),
        (None, "None"),
    ],
)
def test_a_quoted_value_is_short(value, shown):
    assert quoted(value) == shown
