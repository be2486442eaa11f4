"""Several rows that label one pair: each annotator has a vote, and the pair has the label that most of them gave it.

Rows that name nobody are no votes, as they may be one row twice, nor is a pair one when a single annotator compared it:
copies and contradictions among them are what `validate` finds.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal

from tasks.common.lines import group_by_key
from tasks.data.records import Vote
from tasks.data.shapes.convert import ShapedRow
from tasks.data.splits import content_id
from tasks.data.tool_calls import comparable, comparable_answer

HASH_BYTES = 16
Choice = Literal["first", "second", "tie"]  # of the answers as the pair's first row has them


def gathered(rows: Iterable[ShapedRow]) -> Iterator[ShapedRow]:
    """Give each pair that several annotators compared as one row, in the place of its first; other rows as they are.

    Args:
        rows: of preferences, each with one pair.
    """
    left = iter(rows)
    for shaped in left:
        if shaped.tag is not None:
            left = chain([shaped], left)
            break
        yield shaped  # what comes before the first vote need not be put aside
    keyed = ((_key(number, shaped), shaped._asdict()) for number, shaped in enumerate(left))
    for group in group_by_key(keyed):
        yield from _merged([ShapedRow(**row) for row in group])


def ids_of(shaped: ShapedRow) -> set[str]:
    """Give the ids of preferences by which the pair of a row has been or might be known.

    Where annotators are named these are those of both its labels: another vote more or less, and it has the other.
    """
    [entry] = shaped.entries
    swapped = [entry | {"chosen": entry["rejected"], "rejected": entry["chosen"]}] if shaped.tag or shaped.votes else []
    return {*map(pair_id, [entry, *swapped]), *(vote["id"] for vote in shaped.votes or ())}


def pair_id(entry: dict[str, Any]) -> str:
    """Give the id of a pair's record."""
    return content_id(["preferences", entry])


def _key(number: int, shaped: ShapedRow) -> bytes:
    """Give what the rows of one pair share, whichever answer they prefer; of a row that is no vote, its number."""
    [entry] = shaped.entries
    answers = sorted(json.dumps(comparable_answer(entry[name])) for name in ("chosen", "rejected"))
    if shaped.tag is None or answers[0] == answers[1]:
        return number.to_bytes(HASH_BYTES, "big")
    prompt = [comparable(message) for message in entry["prompt"]]
    return hashlib.blake2b(json.dumps([prompt, answers]).encode(), digest_size=HASH_BYTES).digest()


def _merged(rows: Sequence[ShapedRow]) -> list[ShapedRow]:
    """Merge the rows of one pair, unless they are one annotator's alone."""
    choices = [_choice(shaped, rows[0]) for shaped in rows]
    several = len({shaped.tag for shaped in rows}) > 1
    if not several and ("tie" not in choices or len(set(choices)) == 1):
        return list(rows)
    counted = _counted(rows, choices)
    tally = Counter(choice for choice, counts in zip(choices, counted, strict=True) if counts)
    label = _most(tally)
    chosen = rows[0] if label == "tie" else rows[list(zip(choices, counted, strict=True)).index((label, True))]
    ours = "first" if label == "tie" else label
    votes = [
        Vote(
            annotator=str(shaped.tag),
            choice="tie" if choice == "tie" else "chosen" if choice == ours else "rejected",
            counted=counts,
            id=pair_id(shaped.entries[0]),
            source=shaped.source,
            row=shaped.row,
        )
        for shaped, choice, counts in zip(rows, choices, counted, strict=True)
    ]
    return [chosen._replace(tag=None, tied=label == "tie", votes=votes)]


def share_of(votes: Sequence[Vote]) -> float:
    """Give the share of the counted votes that are for the chosen answer."""
    counted = [vote["choice"] == "chosen" for vote in votes if vote["counted"]]
    return sum(counted) / len(counted)


def _choice(shaped: ShapedRow, first: ShapedRow) -> Choice:
    if shaped.tied:
        return "tie"
    chosen, theirs = (comparable_answer(each.entries[0]["chosen"]) for each in (shaped, first))
    return "first" if chosen == theirs else "second"


def _counted(rows: Sequence[ShapedRow], choices: Sequence[Choice]) -> list[bool]:
    """Tell which votes count: of each annotator the first, and none where they differ."""
    by_annotator: dict[str | None, set[Choice]] = {}
    for shaped, choice in zip(rows, choices, strict=True):
        by_annotator.setdefault(shaped.tag, set()).add(choice)
    firsts = {shaped.tag: number for number, shaped in reversed(list(enumerate(rows)))}
    return [len(by_annotator[shaped.tag]) == 1 and firsts[shaped.tag] == number for number, shaped in enumerate(rows)]


def _most(tally: Counter[Choice]) -> Choice:
    """Give the label with the most votes; a tie where two have as many, and where there is none."""
    (label, most), *others = [*tally.most_common(), ("tie", 0)]
    return "tie" if any(count == most for _, count in others) else label
