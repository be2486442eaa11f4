"""Rows that judge one pair: merged to what most of their annotators chose, with no vote lost."""

import random
from collections import Counter
from typing import Any

import pytest

from tasks.data.shapes.convert import ShapedRow
from tasks.data.shapes.votes import gathered, ids_of, pair_id, share_of


def rows(*votes: tuple[str | None, str], prompt: str = "q", start: int = 1) -> list[ShapedRow]:
    """Rows by annotator: A prefers the answer a, B b, and = neither; a lower-case letter has white space at its end."""
    return [
        ShapedRow("f.jsonl", number, [entry(choice, prompt)], annotator, tied=choice == "=")
        for number, (annotator, choice) in enumerate(votes, start=start)
    ]


def entry(choice: str, prompt: str = "q") -> dict[str, Any]:
    chosen, rejected = ("b", "a") if choice in "Bb" else ("a", "b")
    end = "\n" if choice.islower() else ""
    return {"prompt": [{"role": "user", "content": prompt}], "chosen": chosen + end, "rejected": rejected}


def merged_label(*votes: tuple[str | None, str]) -> tuple[str, float, str]:
    """The chosen answer, the share, and a letter a row: c(hosen), r(ejected), t(ie); capital where it counts."""
    [merged] = gathered(rows(*votes))
    assert merged.votes is not None
    letters = (vote["choice"][0].upper() if vote["counted"] else vote["choice"][0] for vote in merged.votes)
    answer = "=" if merged.tied else merged.entries[0]["chosen"].strip()
    return answer, 0 if merged.tied else round(share_of(merged.votes), 3), "".join(letters)


@pytest.mark.parametrize(
    ("votes", "answer", "share", "letters"),
    [
        ("AAB", "a", 0.667, "CCR"),
        ("BAA", "a", 0.667, "RCC"),
        ("BBB", "b", 1.0, "CCC"),
        ("AA=", "a", 0.667, "CCT"),
        ("A==", "=", 0, "CTT"),  # most prefer neither
        ("AB", "=", 0, "CR"),
        ("AB=", "=", 0, "CRT"),
        ("A=", "=", 0, "CT"),  # as many prefer neither
        ("AAB==", "=", 0, "CCRTT"),
        ("=AAB", "a", 0.5, "TCCR"),
        ("aAB", "a", 0.667, "CCR"),  # white space that nobody sees makes no other pair
    ],
)
def test_most_votes_make_the_label(votes, answer, share, letters):
    assert merged_label(*((f"w{number}", choice) for number, choice in enumerate(votes))) == (answer, share, letters)


@pytest.mark.parametrize(
    ("votes", "answer", "share", "letters"),
    [
        ("xA xA yB", "=", 0, "CcR"),  # one vote, however often it is given
        ("xA xA yB zA", "a", 0.667, "CcRC"),
        ("xA xB yB", "b", 1.0, "rcC"),  # two that differ are none
        ("xA xB yA yB", "=", 0, "crcr"),
        ("xA x=", "=", 0, "ct"),  # not even where nobody else has voted
        ("xA x= yA", "a", 1.0, "ctC"),
    ],
)
def test_one_annotator_has_one_vote(votes, answer, share, letters):
    assert merged_label(*((each[0], each[1]) for each in votes.split())) == (answer, share, letters)


@pytest.mark.parametrize(
    "votes",
    [
        [(None, "A"), (None, "A"), (None, "B"), (None, "=")],
        [("x", "A"), ("x", "A"), ("x", "B")],  # validate finds the copy and the contradiction
        [("x", "A"), (None, "A")],
        [("x", "="), ("x", "=")],
    ],
)
def test_rows_that_are_no_votes_of_several_stay_as_they_are(votes):
    assert list(gathered(rows(*votes))) == rows(*votes)


def test_a_pair_of_equal_answers_is_left_to_the_checks():
    same = [ShapedRow("f", n, [entry("A") | {"rejected": " a"}], f"w{n}") for n in (1, 2)]
    assert list(gathered(same)) == same


def test_a_merged_pair_is_the_first_row_of_its_label_and_keeps_every_vote():
    given = [*rows(("x", "B")), *rows(("x", "A"), prompt="other", start=2), *rows(("y", "a"), ("z", "A"), start=3)]
    merged, other = gathered(given)  # in the place of its first row
    assert other == given[1]
    assert merged == given[2]._replace(tag=None, votes=merged.votes)
    assert merged.votes == [
        {"annotator": name, "choice": choice, "counted": True, "id": pair_id(row.entries[0]), "source": "f.jsonl",
         "row": row.row}
        for name, choice, row in (("x", "rejected", given[0]), ("y", "chosen", given[2]), ("z", "chosen", given[3]))
    ]  # fmt: skip


def test_a_pair_is_known_by_every_id_it_has_had_or_may_get():
    a, b, spaced = (pair_id(entry(choice)) for choice in "ABa")
    nameless, alone = rows((None, "A"), ("x", "A"))
    assert ids_of(nameless) == {a}
    assert ids_of(alone) == {a, b}
    [merged] = gathered(rows(("x", "a"), ("y", "A"), ("z", "B")))
    assert ids_of(merged) >= {a, b, spaced}


@pytest.mark.parametrize("seed", range(20))
def test_no_row_is_lost_and_the_order_of_rows_changes_no_label(seed):
    chance = random.Random(seed)
    given = [
        row._replace(row=0)
        for prompt in "pqrs"
        for row in rows(
            *((chance.choice(["x", "y", "z", None]), chance.choice("AABb=")) for _ in range(5)), prompt=prompt
        )
    ]
    given = [row._replace(row=number) for number, row in enumerate(given)]
    labels = []
    for order in (given, chance.sample(given, len(given))):
        merged = list(gathered(order))
        numbers = [number for row in merged for number in [vote["row"] for vote in row.votes or ()] or [row.row]]
        assert Counter(numbers) == Counter(range(len(given)))
        labels.append(
            {
                row.entries[0]["prompt"][0]["content"]: "=" if row.tied else row.entries[0]["chosen"].strip()
                for row in merged
                if row.votes
            }
        )
    assert labels[0] == labels[1]
