"""Reads the raw sources and exclusions that params.yaml names, writes data/prepare and metrics/prepare.json.

Rows stream from source to output: only `limit` (that many rows) and hashes of prompts are held.
"""

import hashlib
import heapq
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from tasks.data.exclusions import Exclusion, read_exclusions
from tasks.data.files import METRICS, PREPARED, replacing, write_json
from tasks.data.lines import Spool
from tasks.data.records import TAGS, TYPES, Kind, Record, Split, write_records
from tasks.data.shapes import ShapedRow, shape_rows
from tasks.data.sources import RawRow, content_hash, read_rows
from tasks.data.splits import content_id, prompts_needed, split_of
from tasks.errors import InputError
from tasks.params import EXAMPLE, Params, Prepare, Source
from tasks.params import Split as Shares
from tasks.stage import main

logger = logging.getLogger(__name__)

HASH_BYTES = 16
Item = TypeVar("Item")


def prepare(params: Params) -> None:
    """Write the canonical demonstrations, preferences and prompts, each with its split, and count them.

    Raises:
        InputError: a source, a row, a column map or the exclusions must be mended, or a split would be empty.
    """
    settings = params.prepare
    exclusions = read_exclusions(Path(settings.exclude))
    _check_sources(settings, exclusions)
    excluded = {each: 0 for each in sorted(exclusions) if each.what != "source"}  # and how often each was met
    with replacing(PREPARED) as folder:
        metrics: dict[str, Any] = {kind: _prepare_kind(folder, kind, settings, params.seed, excluded) for kind in TYPES}
        write_json(METRICS / "prepare.json", metrics)
    for what, name in (each for each, times in excluded.items() if not times):
        logger.warning(
            "%s excludes %s %s, which no source holds: it may have been deleted", settings.exclude, what, name
        )


def _prepare_kind(
    folder: Path, kind: Kind, settings: Prepare, seed: int, excluded: dict[Exclusion, int]
) -> dict[str, Any]:
    source = _sources(settings)[kind]
    counts: Counter[str] = Counter()
    raw = tqdm(_raw_rows(kind, settings, seed), desc=f"prepare {kind}", unit=" rows", disable=None)
    rows = shape_rows(_counted(raw, counts, "rows_read"), kind, source)
    distinct = distinct_prompts(rows) if kind == "prompts" else rows
    left = _without(distinct, kind, excluded, counts)
    kept = left if source.limit is None else choose(left, source.limit)
    records = _records(_counted(kept, counts, "rows_kept"), kind, source, settings.split)
    write_records(folder, kind, _counted_by_split(_counted(records, counts, "records"), counts))
    _check_splits(counts, kind, source, settings.split)
    totals = {name: counts[name] for name in ("rows_read", "excluded", "rows_kept", "records", *get_args(Split))}
    return totals | {"sha256": content_hash(_source_file(source))}


def choose(rows: Iterable[ShapedRow], limit: int) -> list[ShapedRow]:
    """Keep at most `limit` rows, those with the smallest content hash, in the order of the source.

    Rows that are added or removed elsewhere in the source change the choice little, and its order not at all.
    """
    chosen = heapq.nsmallest(limit, rows, key=lambda shaped: (content_id(shaped.entries), shaped.row))
    return sorted(chosen, key=lambda shaped: shaped.row)


def distinct_prompts(rows: Iterable[ShapedRow]) -> Iterator[ShapedRow]:
    """Give each prompt once, as it first appears, with the distinct references of all its rows.

    All rows lie in a file without a name meanwhile.
    """
    keys = bytearray()
    with Spool() as spool:
        for row, entries, tag in rows:
            for entry in entries:
                keys += hashlib.blake2b(json.dumps(entry["prompt"]).encode(), digest_size=HASH_BYTES).digest()
                spool.add({"row": row, "tag": tag, **entry})
        for numbers in _alike(np.frombuffer(keys, f"S{HASH_BYTES}")):
            first, *others = (spool[number] for number in numbers)
            references = dict.fromkeys(text for each in (first, *others) for text in each["references"])
            entry = {"prompt": first["prompt"], "references": list(references)}
            yield ShapedRow(first["row"], [entry], first["tag"])


def _alike(keys: npt.NDArray[np.bytes_]) -> Iterator[list[int]]:
    """Group the places of equal keys, in the order of their first places."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    firsts = first[inverse]
    for _, places in groupby(np.argsort(firsts, kind="stable").tolist(), key=firsts.__getitem__):
        yield list(places)


def _without(
    rows: Iterable[ShapedRow], kind: Kind, excluded: dict[Exclusion, int], counts: Counter[str]
) -> Iterator[ShapedRow]:
    """Leave out what is excluded before `limit` chooses: as if the source did not hold it."""
    if not excluded:  # and spare a hash a row
        yield from rows
        return
    for shaped in rows:
        left = []
        for entry in shaped.entries:
            why = excluded.keys() & {("row", content_id([kind, entry])), (TAGS[kind], shaped.tag)}
            for each in why:
                excluded[each] += 1
            if why:
                counts["excluded"] += 1
            else:
                left.append(entry)
        if left:
            yield shaped._replace(entries=left)


def _check_sources(settings: Prepare, exclusions: Set[Exclusion]) -> None:
    for kind, source in _sources(settings).items():
        if ("source", _name_in_outputs(source)) in exclusions:
            raise InputError(
                f"{settings.exclude} excludes the source {_name_in_outputs(source)}: name another as "
                f"prepare.{kind}.source in params.yaml"
            )


def _sources(settings: Prepare) -> dict[Kind, Source]:
    return {
        "demonstrations": settings.demonstrations,
        "preferences": settings.preferences,
        "prompts": settings.prompts,
    }


def _raw_rows(kind: Kind, settings: Prepare, seed: int) -> Iterator[RawRow]:
    source = _sources(settings)[kind]
    if source.source != EXAMPLE:
        return read_rows(source)
    from tasks.data import example

    makers = {
        "demonstrations": example.demonstrations,
        "preferences": example.preferences,
        "prompts": example.prompts,
    }
    return (RawRow(number, fields) for number, fields in enumerate(makers[kind](settings.example, seed), start=1))


def _source_file(source: Source) -> Path:
    if source.source != EXAMPLE:
        return Path(source.source)
    from tasks.data import example

    return Path(example.__file__)


def _records(rows: Iterable[ShapedRow], kind: Kind, source: Source, shares: Shares) -> Iterator[Record]:
    name = _name_in_outputs(source)
    for row, entries, tag in rows:
        for entry in entries:
            split, fields = split_of(entry["prompt"], shares), entry | {TAGS[kind]: tag}
            yield TYPES[kind](id=content_id([kind, entry]), split=split, source=name, row=row, **fields)


def _name_in_outputs(source: Source) -> str:
    """Give the path as params.yaml has it, or only the file's name where it leads out of the project.

    Where a machine keeps its data must not change the bytes of an output.
    """
    path = Path(source.source)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _counted(items: Iterable[Item], counts: Counter[str], name: str) -> Iterator[Item]:
    for item in items:
        counts[name] += 1
        yield item


def _counted_by_split(records: Iterable[Record], counts: Counter[str]) -> Iterator[Record]:
    for record in records:
        counts[record.split] += 1
        yield record


def _check_splits(counts: Counter[str], kind: Kind, source: Source, shares: Shares) -> None:
    """Stop now rather than hours later, when a trainer or the evaluation finds its split empty."""
    portions = {"train": 1 - shares.validation - shares.test, "validation": shares.validation, "test": shares.test}
    empty = [split for split in portions if not counts[split]]
    if empty:
        needed = max(prompts_needed(portions[split]) for split in empty)
        raise InputError(
            f"{source.source}: its {counts['records']} {kind} leave nothing for {' and '.join(empty)}: about {needed} "
            "distinct prompts fill every split, so add rows or raise the shares under prepare.split in params.yaml"
        )


if __name__ == "__main__":
    main(prepare)
