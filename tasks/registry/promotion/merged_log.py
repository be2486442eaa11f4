"""The decision logs of two machines made one: every decision of both, once, in one order on either machine.

A line stays behind those it stood behind; what neither log orders is ordered by time. Of two changes of one champion
only one can count: the one that the registry has followed, else the later one. The other's line stays in the record,
before it, and is reported.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from tasks.registry.promotion.decision_log import read_merged
from tasks.registry.promotion.decisions import MOVES, Decision, registered_model

Rows = dict[str, tuple[dict[str, Any], bytes]]  # row and line by id


class MergedLog(NamedTuple):
    """A log that has all decisions of two others."""

    content: bytes
    decisions: list[Decision]
    new: int  # decisions that the first of the two lacked
    conflicts: list[str]  # a sentence each
    is_forked: bool  # whether one champion was changed twice, so that it depends on `applied` which change counts


def merge_logs(ours: bytes, theirs: bytes, applied: str | None = None) -> MergedLog:
    """Make two logs one. The other way round gives the same lines.

    Args:
        ours: this machine's file.
        theirs: the other machine's.
        applied: the change of champion that the registry followed last, if that is known.

    Raises:
        InputError: a row is not a decision.
    """
    first, second = read_merged(ours, theirs)
    rows = {**first, **second}
    conflicts, is_forked = [], False
    for name in first.keys() & second.keys():
        if first[name][0] != second[name][0]:
            rows[name] = min(first[name], second[name], key=lambda found: found[1])
            conflicts.append(f"decision {name} is not the same in both logs: compare them (git log -p decisions.jsonl)")
    ordered = [cast("Decision", rows[name][0]) for name in _in_order(first, second, rows)]
    for model in sorted({registered_model(decision["policy"]) for decision in ordered}):
        own = [decision for decision in ordered if registered_model(decision["policy"]) == model]
        moves = [decision for decision in own if decision["action"] in MOVES]
        if moves:
            winner = next((move for move in moves if move["id"] == applied), moves[-1])
            line = _line_to(moves, winner)
            for move in (move for move in moves if move not in line):
                is_forked = True
                by = next((each for each in reversed(line) if each["previous"] == move["previous"]), winner)
                is_late = _put_before(ordered, move, by, winner)
                sides = [(each["id"] in first, each["id"] in second) for each in (move, by)]
                if is_late or sorted(sides) == [(False, True), (True, False)]:
                    conflicts.append(_told(move, by))
        conflicts += _shared_numbers(model, own, first, second)
    content = b"".join(rows[decision["id"]][1] for decision in ordered)
    return MergedLog(content, ordered, len(second.keys() - first.keys()), conflicts, is_forked)


def last_move(decisions: Sequence[Decision], model: str) -> Decision | None:
    """Return the decision that made the champion of a registered model."""
    moves = [each for each in decisions if each["action"] in MOVES and registered_model(each["policy"]) == model]
    return moves[-1] if moves else None


def _in_order(first: Rows, second: Rows, rows: Rows) -> Iterator[str]:
    left = [list(first), list(second)]
    while any(left):
        heads = {names[0] for names in left if names}
        waiting = {name for names in left for name in names[1:]}
        free = heads - waiting or heads  # logs that contradict each other: by time
        name = min(free, key=lambda head: (rows[head][0]["time"], head))
        yield name
        left = [[other for other in names if other != name] if name in names else names for names in left]


def _put_before(ordered: list[Decision], move: Decision, by: Decision, winner: Decision) -> bool:
    """Move a change of champion before the one that overtook it, if it stands behind what the registry followed."""
    is_late = ordered.index(move) > ordered.index(winner)
    if is_late:
        ordered.remove(move)
        ordered.insert(ordered.index(by), move)
    return is_late


def _line_to(moves: Sequence[Decision], winner: Decision) -> list[Decision]:
    """Return the changes that led to the winner, and those that went on from it."""
    place = moves.index(winner)
    line = [winner]
    for move in reversed(moves[:place]):
        previous = line[0]["previous"]
        if previous is not None and previous["md5"] == move["policy"]["md5"]:
            line.insert(0, move)
    for move in moves[place + 1 :]:
        if move["previous"] is not None and move["previous"]["md5"] == line[-1]["policy"]["md5"]:
            line.append(move)
    return line


def _told(move: Decision, by: Decision) -> str:
    previous = move["previous"]
    before = f"version {previous['version']}" if previous else "no version"
    lost = f"version {move['policy']['version']} did not become champion by it"
    return (
        f"two decisions changed the champion when it was {before}: {_named(move)}, and {_named(by)}, which counts; "
        f"{lost}. Both lines stay; to decide on it again, check out its commit and run trueline run"
    )


def _named(decision: Decision) -> str:
    what = f"{decision['action']} of version {decision['policy']['version']}"
    return f"{decision['id']} ({what}, {decision['time']}, by {decision['who']})"


def _shared_numbers(model: str, own: Sequence[Decision], first: Rows, second: Rows) -> Iterator[str]:
    """Tell of version numbers that mean one model here and another there."""
    for number in sorted({decision["policy"]["version"] for decision in own}):
        ours, theirs = (
            {each["policy"]["md5"] for each in own if each["id"] in rows and each["policy"]["version"] == number}
            for rows in (first, second)
        )
        if ours and theirs and ours != theirs and len(ours | theirs) > max(len(ours), len(theirs)):
            both = " and ".join(sorted(ours ^ theirs))
            yield (
                f"version {number} of {model} is not the same model in both logs ({both}): the machines use two MLflow "
                "databases; name one server for both in MLFLOW_TRACKING_URI"
            )
