"""The sentence that tells the bad rows of a file."""

import pytest

from tasks.common.errors import InputError
from tasks.common.safe_text import LONGEST_SENTENCE
from tasks.data.sources.raw_rows import BadRows


def sentence(*faults: tuple[int | str, str], cure: str | None = None) -> str:
    bad = BadRows("a.csv")
    for place, fault in faults:
        bad.add(place, fault, *([cure] if cure else []))
    assert bad.count == len(faults)
    with pytest.raises(InputError) as error:
        bad.stop()
    return str(error.value)


def test_no_bad_row_says_nothing():
    BadRows("a.csv").stop()


def test_one_bad_row():
    assert sentence((3, ": chosen is null")) == "a.csv row 3: chosen is null: fix or remove the row"
    assert sentence(("3 (line 5)", "is not valid CSV"), cure="fix its quotes") == (
        "a.csv row 3 (line 5) is not valid CSV: fix its quotes"
    )


def test_several_are_reported_with_their_faults():
    assert sentence((3, ": chosen is null"), (4, "is not valid JSON"), (9, ": chosen is null")) == (
        "a.csv has 3 bad rows: rows 3, 9: chosen is null; row 4 is not valid JSON: fix or remove them"
    )


def test_of_many_the_first_ten_are_reported_and_the_others_counted():
    message = sentence(*((row, f": fault {row % 2}") for row in range(1, 2001)))
    assert message == (
        "a.csv has 2,000 bad rows: rows 1, 3, 5, 7, 9: fault 1; rows 2, 4, 6, 8, 10: fault 0; and 1,990 more: "
        "fix or remove them"
    )


def test_the_cures_are_given_once():
    bad = BadRows("a.csv")
    bad.add(1, "is not UTF-8", "save the file as UTF-8")
    bad.add(2, ": chosen is null")
    bad.add(3, "is not UTF-8", "save the file as UTF-8")
    with pytest.raises(InputError, match=r": save the file as UTF-8, or fix or remove them$"):
        bad.stop()


def test_long_faults_are_cut_so_that_all_ten_can_be_reported():
    message = sentence(*((row, f": fault {row} {'x' * 5000}") for row in range(1, 11)))
    assert len(message) < LONGEST_SENTENCE
    assert all(f"row {row}: fault {row} x" in message for row in range(1, 11))
