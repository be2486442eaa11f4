"""Plain columns for the suites to test: one line a row, one column a finding or a figure.

A file is read twice: once for what stands in each row (look.py), and once for contamination, when all test prompts are
known. Memory holds numbers and findings, never the texts of all rows.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tasks.common.lazy import end_to_end
from tasks.common.lines import Lines
from tasks.data.checks.contamination import Question, Study, find_contamination
from tasks.data.checks.look import Findings, Looked, look
from tasks.data.checks.overlap import Keys, Numbers, contradictions, copies, shared_prompts
from tasks.data.checks.schema import SPLITS, location_of, texts
from tasks.data.records import PAIRS, TRAINING_ONLY, Kind, Message

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")


def tables(
    files: Mapping[Kind, Lines], tokenizer: "PreTrainedTokenizerBase", marks_of_reasoning: Collection[str] = ()
) -> dict[Kind, "pd.DataFrame"]:
    """Look at all rows of all files: one table a file, in the order of its rows.

    Columns of findings hold a short description, or None where nothing was found; columns of figures hold numbers, or
    NaN where a row's shape is wrong or the chat template refuses it.
    """
    looked = {kind: look(kind, lines, tokenizer, marks_of_reasoning) for kind, lines in files.items()}
    beside = _beside(files, looked)
    starts = accumulate((len(lines) for lines in files.values()), initial=0)
    return {
        kind: _table(
            kind,
            found,
            {name: _of_file(beside_others, start, len(found.splits)) for name, beside_others in beside.items()},
        )
        for start, (kind, found) in zip(starts, looked.items(), strict=False)
    }


def _beside(by_kind: Mapping[Kind, Lines], looked: Mapping[Kind, Looked]) -> dict[str, Findings]:
    """What is found in rows beside others, by column and the row's number; rows are numbered through all files."""
    keys = Keys(*(np.concatenate(column) for column in zip(*(found.keys for found in looked.values()), strict=True)))
    files = list(by_kind.values())
    splits = np.concatenate([found.splits for found in looked.values()])
    is_sound = np.concatenate([found.is_sound for found in looked.values()])
    is_extra = np.concatenate([np.full(len(found.splits), kind in TRAINING_ONLY) for kind, found in looked.items()])
    records = end_to_end(files)
    test, training = np.flatnonzero(is_sound & (splits == TEST)), is_sound & (splits == TRAIN)
    given_away: dict[int, int] = {}
    # Each alone: how often AI pairs hold a phrase must not decide on the rows of people.
    for studied in (training & ~is_extra, training & is_extra):
        if studied.any():
            questions = (Question(number, _asked(records[number]["prompt"])) for number in test.tolist())
            given_away |= find_contamination(questions, _studies(files, studied))

    def locations(found: Numbers) -> Findings:
        return {row: location_of(records[found[row]]) for row in np.flatnonzero(found >= 0).tolist()}

    held_out = shared_prompts(keys, splits)
    return {
        "copy_of": locations(copies(keys)),
        "contradicts": locations(contradictions(keys)),  # of preferences and ratings
        "held_out_at": {
            row: f"{location} ({SPLITS[splits[held_out[row]]]})" for row, location in locations(held_out).items()
        },
        "gives_away": {row: location_of(records[question]) for row, question in given_away.items()},
    }


def _studies(files: Sequence[Lines], is_training: npt.NDArray[np.bool_]) -> Iterator[Study]:
    progress = tqdm(
        zip(is_training, chain.from_iterable(files), strict=True),
        desc="validate: contamination",
        total=len(is_training),
        unit=" rows",
        mininterval=10,
        disable=None,
        leave=False,
    )
    for number, (is_wanted, record) in enumerate(progress):
        if is_wanted:
            yield Study(number, _asked(record["prompt"]), list(texts(record)))


def _asked(prompt: Sequence[Message]) -> list[str]:
    return [message["content"] for message in prompt if message["role"] == "user"]


def _of_file(found: Findings, start: int, count: int) -> Findings:
    return {row - start: finding for row, finding in found.items() if start <= row < start + count}


def _table(kind: Kind, looked: Looked, beside: Mapping[str, Findings]) -> "pd.DataFrame":
    import pandas as pd

    split = np.array([*SPLITS, "unknown"], dtype=object)[looked.splits]
    columns: dict[str, Any] = {"split": split, "training": (looked.splits == TRAIN) * 1}
    nothing = np.full(len(split), None, dtype=object)
    for name, found in {**looked.findings, **beside}.items():
        columns[name] = _column(found, nothing)
    if kind in PAIRS:
        # Of answers that differ nothing but that is asked for: their texts are left where they are.
        for name in ("chosen", "rejected"):
            columns[name] = _column(looked.equal, np.where(looked.is_sound, np.array(name, dtype=object), nothing))
    columns["holds_personal_data"] = (columns["personal_data"] != nothing) * 1
    # As they are: pandas would look into every column of objects for texts.
    series = {name: pd.Series(column, dtype=column.dtype) for name, column in (columns | looked.figures).items()}
    return pd.DataFrame(series, copy=False)


def _column(found: Findings, others: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    column = others.copy()
    for row, finding in found.items():
        column[row] = finding
    return column
