"""People compare the candidate's and the opponent's answers blind, on annotation sheets for any spreadsheet.

Nothing in it tells whose answer is whose: a hash puts them left and right. A row is known by its id, which has a
hash of the two answers in their places, and not by their texts, which spreadsheets change: 007 to 7, 1/2 to a day.
"""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tasks.common.errors import InputError
from tasks.common.escapes import cell
from tasks.common.files import replacing
from tasks.data.names import as_name
from tasks.data.records import Message
from tasks.data.sources.text_files import LONGEST_CSV_FIELD
from tasks.data.splits import content_id
from tasks.data.tool_calls import message_as_text
from tasks.evaluation.compare import Resampling, win_rate
from tasks.evaluation.metrics import mean
from tasks.evaluation.people.agreement import Rating, cohen_kappa, krippendorff_alpha
from tasks.evaluation.people.annotators import AnnotatorVote, over_annotators
from tasks.evaluation.summary import rounded

Side = Literal["left", "right"]
Choice = Literal["left", "right", "same"]
CHOICES: dict[str, Choice] = {"left": "left", "right": "right", "same": "same"}
COLUMNS = ("id", "prompt", "left", "right", "choice", "annotator")
READ = ("id", "left", "right", "choice", "annotator")
SEPARATORS = ",;\t"  # spreadsheets save with that of their country
LETTERS = re.compile(r"[^\W\d_]")
LETTERS_OF_A_DAY = 20  # a text with more is taken for no day, number or truth value
LETTERS_COMPARED = 1000  # of long texts Excel keeps 32,767 characters


class Pair(NamedTuple):
    """Two answers to one prompt, as people see them."""

    id: str  # the prompt's, and a hash of the two answers in these places
    prompt: str  # its id
    conversation: str
    left: str
    right: str
    candidate: Side  # whose side nobody sees


class Vote(NamedTuple):
    """What one annotator chose of one pair."""

    prompt: str  # its id
    annotator: str
    choice: Choice
    candidate: Side

    @property
    def points(self) -> float:
        """1 for the candidate, 0 for the opponent, a half for neither."""
        return 0.5 if self.choice == "same" else float(self.choice == self.candidate)


def pairs(responses: Sequence[Mapping[str, Any]], seed: int) -> list[Pair]:
    """Lay out the prompts with two different answers, in random order: the first so many are a fair choice of all.

    Args:
        responses: the rows of reports/evaluate/responses.jsonl.
        seed: with a prompt's id it gives the place in the order and the sides, whatever the other prompts are.
    """
    drawn = {row["id"]: int(content_id([seed, row["id"]]), 16) for row in responses}
    found = [_pair(row, "left" if drawn[row["id"]] % 2 else "right") for row in responses if _differ(row)]
    return sorted(found, key=lambda pair: drawn[pair.prompt])


def write_annotation_sheet(path: Path, shown: Sequence[Pair]) -> None:
    """Write an annotation sheet to be filled in: columns choice (left, right, same or nothing) and annotator.

    Raises:
        InputError: the file exists, and may hold votes.
    """
    if path.exists():
        raise InputError(f"{path} exists and may hold votes: name a new file")
    # Excel recognises UTF-8 only by the byte order mark.
    with replacing(path) as draft, draft.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for pair in shown:
            texts = (pair.conversation, pair.left, pair.right)
            writer.writerow([pair.id, *map(cell, texts), "", ""])


def read_votes(paths: Sequence[Path], shown: Sequence[Pair]) -> list[Vote]:
    """Read filled annotation sheets; a file without any annotator is one person's, who gets its name.

    Args:
        paths: at least one; the separator may be comma, semicolon or tab.
        shown: all pairs of the evaluation.

    Returns:
        The votes, by prompt and annotator.

    Raises:
        InputError: a file is no annotation sheet, a row is of another evaluation, has other answers or another
            choice or names no annotator, an annotator rated a prompt twice, or no row has a choice.
    """
    known = {pair.id: pair for pair in shown}
    votes: list[Vote] = []
    places: dict[tuple[str, str], str] = {}  # where an annotator rated a prompt
    for path in paths:
        filled = list(_filled(path))
        owner = "" if any(cells["annotator"] for _, cells in filled) else path.stem
        for place, cells in filled:
            vote = _vote(place, cells, owner, known)
            if vote is None:
                continue
            rated = (vote.prompt, vote.annotator)
            if rated in places:
                raise InputError(
                    f"{place}: {vote.annotator} has already rated this prompt in {places[rated]}: empty one choice"
                )
            places[rated] = place
            votes.append(vote)
    if not votes:
        raise InputError(f"{', '.join(map(str, paths))}: no row has a choice: write left, right or same into some")
    return sorted(votes)


def summarise_votes(
    votes: Sequence[Vote], same_answers: int, resampling: Resampling, conversations: Mapping[str, str]
) -> dict[str, Any]:
    """Sum up the votes of people: a prompt is won where more of its votes are for the candidate than for the opponent.

    Args:
        votes: at least one.
        same_answers: prompts that nobody was asked about, because both answers are the same.
        resampling: how intervals are drawn.
        conversations: the conversation of each prompt, by its id.
    """
    points = defaultdict(list)
    for vote in sorted(votes):
        points[vote.prompt].append(vote.points)
    scores = [sum(each) / len(each) for each in points.values()]
    draws = resampling._replace(conversations=tuple(conversations[prompt] for prompt in points))
    annotator_votes = [
        AnnotatorVote(vote.annotator, vote.prompt, conversations[vote.prompt], vote.points) for vote in sorted(votes)
    ]
    rate = win_rate(scores, [0.5] * len(scores), draws)
    # The labels are sides, which are drawn evenly: where one model nearly always wins, chance alone would agree on it.
    ratings = [Rating(vote.annotator, vote.prompt, vote.choice) for vote in votes]
    return rounded(
        {
            "prompts": len(points),
            "same_answers": same_answers,
            "votes": len(votes),
            "annotators": dict(sorted(Counter(vote.annotator for vote in votes).items())),
            "alpha": krippendorff_alpha(ratings),
            "kappa": cohen_kappa(ratings),
            "left_preferred": mean([vote.choice == "left" for vote in votes if vote.choice != "same"]),
            "vs_opponent": over_annotators(rate, annotator_votes, resampling.confidence),
            "confidence": resampling.confidence,
        }
    )


def vote_rows(votes: Sequence[Vote]) -> Iterator[dict[str, Any]]:
    """Give a row a vote: the annotator, the prompt, the choice, and on which side the candidate's answer was."""
    for vote in votes:
        yield {**vote._asdict(), "annotator": cell(vote.annotator)}


def _differ(row: Mapping[str, Any]) -> bool:
    return bool(row["candidate"]["answer"] != row["opponent"]["answer"])


def _pair(row: Mapping[str, Any], side: Side) -> Pair:
    ours, theirs = row["candidate"]["answer"], row["opponent"]["answer"]
    left, right = (ours, theirs) if side == "left" else (theirs, ours)
    digest = content_id([left, right])[:8]
    return Pair(f"{row['id']}-{digest}", row["id"], _as_text(row["prompt"]), left, right, side)


def _as_text(conversation: Sequence[Message]) -> str:
    if len(conversation) == 1:
        return message_as_text(conversation[0])
    return "\n\n".join(f"{turn['role']}: {message_as_text(turn)}" for turn in conversation)


def _filled(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Read the cells that count, without white space at their ends, and say where each row is; empty rows are none."""
    csv.field_size_limit(LONGEST_CSV_FIELD)
    lines = io.StringIO(_text(path), newline="")
    separator = max(SEPARATORS, key=lines.readline().count)
    lines.seek(0)
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        names, *rows = [[cell.strip() for cell in row] for row in reader] or [[]]
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is not valid CSV ({error}): save it as CSV again") from None
    missing = [name for name in READ if name not in names]
    if missing:
        raise InputError(f"{path} has no column {missing[0]}: fill in a file that trueline label sheet wrote")
    for number, row in enumerate(rows, start=2):  # as a spreadsheet counts, whose first row has the names
        if any(row):
            cells = dict(zip(names, row, strict=False))  # some leave empty cells at the end of a row out
            yield f"{path} row {number}", {name: cells.get(name, "") for name in READ}


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} is no file: name filled annotation sheets") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not CSV in UTF-8: save it so (in Excel as CSV UTF-8)") from None


def _vote(place: str, cells: Mapping[str, str], owner: str, known: Mapping[str, Pair]) -> Vote | None:
    """Read a row; None where it has no choice."""
    pair, choice, annotator = known.get(cells["id"]), cells["choice"], as_name(cells["annotator"] or owner)
    if pair is None:
        raise InputError(
            f"{place}: {cells['id'] or 'no id'} is not of the evaluation in dvc.lock: bring back the dvc.lock that the "
            "annotation sheet was made with (git checkout), or make a new one"
        )
    if _is_another(pair.left, cells["left"]) or _is_another(pair.right, cells["right"]):
        raise InputError(
            f"{place} has not the answers of its id: fill in the annotation sheet as it was written, whole rows alone"
        )
    if not choice:
        return None
    if choice.lower() not in CHOICES:
        raise InputError(f"{place}: the choice {choice} is none of left, right and same: correct or empty it")
    if not annotator:
        raise InputError(f"{place} names no annotator, where other rows of the file do: write who has rated it")
    return Vote(pair.prompt, annotator, CHOICES[choice.lower()], pair.candidate)


def _is_another(text: str, cell: str) -> bool:
    """Tell whether a cell surely holds another text; what spreadsheets do to a text leaves its letters as they are."""
    shown, found = ("".join(LETTERS.findall(each))[:LETTERS_COMPARED] for each in (text, cell))
    return len(shown) > LETTERS_OF_A_DAY and shown != found
