import pytest

from tasks.common.rounding import chance, number


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4875, "0.488"), (0.4865, "0.486"), (0.729, "0.729"), (-0.0001, "0.000"), (1, "1.000"), (None, "—")],
)
def test_a_figure_is_rounded_as_it_stands_in_a_file(value, text):
    """0.4875 is .48749999… to the machine, which wrote 0.487 here and 48.8 % there."""
    assert number(value) == text


def test_signs_and_digits():
    assert (number(0.25, 1, "+"), number(-0.25, 2, "+"), number(-0.00001, sign="+")) == ("+0.2", "-0.25", "+0.000")
    assert number(1234567.0, 0) == "1,234,567"


@pytest.mark.parametrize(("value", "text"), [(0.00009, "< 0.0001"), (0.0, "< 0.0001"), (0.04, "0.0400"), (None, "—")])
def test_a_chance_is_never_none_at_all(value, text):
    assert chance(value) == text
