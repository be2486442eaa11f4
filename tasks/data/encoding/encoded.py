"""Encoded rows on disk, memory-mapped and stored by content: training on the same rows again tokenises none.

A split of a file becomes a folder `.trueline/encoded/<kind>-<split>/<key>` of three files: `ids`, the token ids of all
rows end to end, `counts.npy`, the tokens of each row's prompt and of each of its answers, and `seal`, a hash over the
two and the key, by which a damaged entry is known before anybody learns from it.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from tqdm import tqdm

from tasks.common.errors import InputError
from tasks.common.files import STATE, hash_files, replacing, require_file
from tasks.common.lazy import LazySequence, end_to_end, stretches
from tasks.data.encoding.tokens import Encoded, EncodedPair, Parts, does_not_fit, encode_records
from tasks.data.records import ANSWERS, Kind, Split, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENCODED = STATE / "encoded"
IDS, COUNTS, SEAL = "ids", "counts.npy", "seal"
# What turns records into ids: other code may give others.
CODE = (
    *sorted(Path(__file__).parent.glob("*.py")),
    *(Path(__file__).parents[1] / name for name in ("records.py", "tool_calls.py")),
)
LIBRARIES = ("transformers", "tokenizers", "jinja2")
# Contents of a split that stay on disk, those used last: of two data sets, or under two tokenizers, that take turns.
MAX_ENTRIES = 2
Row = TypeVar("Row")
logger = logging.getLogger(__name__)


class CountedRows(LazySequence[Row]):
    """N rows of token ids, of which the numbers of tokens are known."""

    def __init__(self, counts: npt.NDArray[np.int64], make: Callable[[int], Row]) -> None:
        """Have row i made by `make(i)`; `counts` has the tokens of its prompt and of its answers: (N, 1 + answers)."""
        self.counts = counts
        super().__init__(len(counts), make)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, (N,): of its prompt and its longest answer."""
        longest: npt.NDArray[np.int64] = self.counts[:, 0] + self.counts[:, 1:].max(axis=1, initial=0)
        return longest


def joined(parts: Sequence[CountedRows[Row]]) -> CountedRows[Row]:
    """Give rows of one shape behind each other."""
    return CountedRows(np.concatenate([part.counts for part in parts]), end_to_end(parts).__getitem__)


class EncodedRows(CountedRows[Row]):
    """N rows of token ids that stay on disk until one is asked for."""

    def __init__(self, folder: Path, dtype: "np.dtype[np.unsignedinteger]", make: Callable[[Parts], Row]) -> None:
        """Open a folder whose ids are of a type; `make` gives a row from its prompt's ids and those of its answers."""
        counts: npt.NDArray[np.int64] = np.load(folder / COUNTS)
        file = folder / IDS
        ids = np.memmap(file, dtype, mode="r") if file.stat().st_size else np.empty(0, dtype)

        def row(number: int, of_row: npt.NDArray[np.unsignedinteger]) -> Row:
            return make([part.tolist() for part in np.split(of_row, counts[number, :-1].cumsum())])

        rows = stretches(counts.sum(axis=1), lambda start, end: ids[start:end], row)
        super().__init__(counts, rows.__getitem__)


def encoded_demonstrations(
    folder: Path, split: Split, tokenizer: "PreTrainedTokenizerBase", context: int | None
) -> EncodedRows[Encoded]:
    """Give the demonstrations of a folder's split, for a model with room for `context` tokens (None: any number).

    Raises:
        InputError: the file is missing or damaged; or naming file and row, where one cannot be encoded or does not fit.
    """
    return _rows(folder, "demonstrations", split, tokenizer, make=lambda parts: Encoded(*parts), context=context)


def encoded_preferences(
    folder: Path,
    split: Split,
    tokenizer: "PreTrainedTokenizerBase",
    context: int | None,
    kind: Kind = "preferences",
) -> EncodedRows[EncodedPair]:
    """Give the pairs of a folder's split, for a model with room for `context` tokens (None: any number).

    Raises:
        InputError: the file is missing or damaged; or naming file and row, where one cannot be encoded or does not fit.
    """

    def pair(parts: Parts) -> EncodedPair:
        prompt, *answers = parts
        return EncodedPair(*(Encoded(prompt, answer) for answer in answers))

    return _rows(folder, kind, split, tokenizer, make=pair, context=context)


def encoded_ratings(
    folder: Path, split: Split, tokenizer: "PreTrainedTokenizerBase", context: int | None
) -> EncodedRows[Encoded]:
    """Give the rated answers of a folder's split, for a model with room for `context` tokens (None: any number).

    Raises:
        InputError: the file is missing or damaged; or naming file and row, where one cannot be encoded or does not fit.
    """
    return _rows(folder, "ratings", split, tokenizer, make=lambda parts: Encoded(*parts), context=context)


def encoded_prompts(
    folder: Path, split: Split, tokenizer: "PreTrainedTokenizerBase", context: int | None, new_tokens: int
) -> EncodedRows[list[int]]:
    """Give the prompts of a folder's split, which leave room for an answer of `new_tokens` in a context of `context`.

    Raises:
        InputError: the file is missing or damaged; or naming file and row, where one cannot be encoded or does not fit.
    """
    return _rows(
        folder, "prompts", split, tokenizer, make=lambda parts: parts[0], context=context, new_tokens=new_tokens
    )


def _rows(
    folder: Path,
    kind: Kind,
    split: Split,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    make: Callable[[Parts], Row],
    context: int | None,
    new_tokens: int = 0,
) -> EncodedRows[Row]:
    """Open the encoded rows; where they are not there yet, one process writes them and others wait for it."""
    dtype = np.min_scalar_type(max(tokenizer.get_vocab().values()))
    entries = ENCODED / f"{kind}-{split}"
    entries.mkdir(parents=True, exist_ok=True)
    with FileLock(entries.with_suffix(".lock")):
        entry = entries / _key(folder / f"{kind}.jsonl", split, tokenizer)
        if not _is_intact(entry):
            of_split = tqdm(
                read_records(folder, kind, split), desc=f"tokens of {kind}, {split}", unit=" rows", disable=None
            )
            with replacing(entry) as draft:
                _write(draft, encode_records(tokenizer, kind, of_split), 1 + len(ANSWERS[kind]), dtype)
        os.utime(entry)
        _drop_old(entries)
        rows = EncodedRows(entry, dtype, make)  # mapped, it may be dropped by another process
    if context is not None:
        for number in np.flatnonzero(rows.lengths + new_tokens > context)[:1].tolist():
            [record] = islice(read_records(folder, kind, split), number, number + 1)
            raise does_not_fit(record, int(rows.lengths[number]) + new_tokens, context)
    return rows


def _is_intact(entry: Path) -> bool:
    """Tell whether there is an entry, and it is as it was written; one that is damaged is logged."""
    if not entry.exists():
        return False
    with suppress(OSError, InputError, UnicodeDecodeError):
        if (entry / SEAL).read_text(encoding="utf-8") == _seal(entry):
            return True
    logger.warning("%s is damaged: its rows are encoded again", entry)
    return False


def _seal(entry: Path) -> str:
    """Hash an entry's files and its name, the key: another's content in its place is not it."""
    content = [entry.name, *(hash_files(entry / name) for name in (IDS, COUNTS))]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _write(folder: Path, encoded: Iterable[Parts], parts_of_a_row: int, dtype: "np.dtype[np.unsignedinteger]") -> None:
    folder.mkdir()
    counts = array("q")
    with (folder / IDS).open("wb") as file:
        for parts in encoded:
            counts.extend(map(len, parts))
            array(dtype.char, [token for part in parts for token in part]).tofile(file)
        _to_disk(file)
    with (folder / COUNTS).open("wb") as file:
        np.save(file, np.frombuffer(counts, np.int64).reshape(-1, parts_of_a_row))
        _to_disk(file)
    (folder / SEAL).write_text(_seal(folder), encoding="utf-8")


def _to_disk(file: BinaryIO) -> None:
    """Wait until the disk has all: what a power failure cuts off would be encoded again."""
    file.flush()
    os.fsync(file.fileno())


def _key(file: Path, split: Split, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of all that the ids follow from: the rows, the tokenizer with its template, and the code."""
    require_file(file)
    with tempfile.TemporaryDirectory() as temporary_folder:
        saved = Path(temporary_folder) / "tokenizer"
        tokenizer.save_pretrained(saved)
        libraries = {name: version(name) for name in LIBRARIES}
        content = [libraries, *map(hash_files, (*CODE, saved, file)), split]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _drop_old(entries: Path) -> None:
    """Keep the contents used last; drop the others, and what killed runs left half written."""
    drafts = [entry for entry in entries.iterdir() if entry.name.startswith(".")]
    by_use = sorted(set(entries.iterdir()) - set(drafts), key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in (*drafts, *by_use[MAX_ENTRIES:]):
        shutil.rmtree(entry)
