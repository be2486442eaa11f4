"""Reads the raw sources and exclusions that params.yaml names, writes data/prepare and metrics/prepare.json.

Rows stream from source to output: only `limit` (that many rows) and hashes of prompts are held.
"""

import hashlib
import heapq
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar, get_args

from tqdm import tqdm

from tasks.common.errors import InputError, quoted
from tasks.common.files import KEEP_SURROGATES, METRICS, PREPARED, hash_files, names_path_in, replacing, write_json
from tasks.common.lines import group_by_key
from tasks.common.python_files import is_python
from tasks.data.exclusions import Exclusion, What, read_exclusions
from tasks.data.names import stands_for
from tasks.data.records import PAIRS, TAGS, TRAINING_ONLY, TYPES, Kind, Record, Split, Vote, write_records
from tasks.data.reserved import test_only, training_only
from tasks.data.shapes.columns import Tally
from tasks.data.shapes.convert import ShapedRow, shape_rows
from tasks.data.shapes.statements import Left
from tasks.data.shapes.votes import gathered, ids_of, pair_id, share_of
from tasks.data.sources.python_source import python_rows
from tasks.data.sources.raw_rows import BadRows, RawRow
from tasks.data.sources.source import files_of, identity, read_rows
from tasks.data.splits import content_id, prompts_needed, split_of
from tasks.settings.params import NO_ROWS, Params, Prepare, Source
from tasks.settings.params import Split as Shares
from tasks.stage import main

logger = logging.getLogger(__name__)

HASH_BYTES = 16
LEFT_OUT = "left_out.jsonl"  # which rows are not used by what they say themselves, and why
TIE, DIFFERENT_COLUMNS = "tie", "different_columns"
Item = TypeVar("Item")
# By kind, what marks rows that are not for the split of their prompt.
RESERVED = {"prompts": test_only, **dict.fromkeys(TRAINING_ONLY, training_only)}


def prepare(params: Params) -> None:
    """Write the canonical records of every kind, each with its split, and count them.

    Raises:
        InputError: a source, a row, a column map or the exclusions must be fixed, or a split would be empty.
    """
    settings = params.prepare
    excluded = dict.fromkeys(sorted(read_exclusions(Path(settings.exclude))), 0)  # and how often each was met
    files = {kind: _files(kind, settings, excluded) for kind in TYPES}
    with replacing(PREPARED) as folder:
        folder.mkdir()
        with (folder / LEFT_OUT).open("w", encoding="utf-8", errors=KEEP_SURROGATES) as left_out:
            metrics: dict[str, Any] = {
                kind: _prepare_kind(folder, kind, files[kind], params, excluded, left_out=left_out) for kind in TYPES
            }
        write_json(METRICS / "prepare.json", metrics)
    for what, name in (each for each, times in excluded.items() if not times):
        logger.warning(
            "%s excludes %s %s, which nothing matches: it may have been deleted, or be spelt otherwise",
            settings.exclude,
            what,
            name,
        )


def _files(kind: Kind, settings: Prepare, excluded: dict[Exclusion, int]) -> dict[str, Source | None]:
    """Give the files of a kind by their names in outputs, each as a source; None for those that are excluded."""
    source = _sources(settings)[kind]
    if source.source == NO_ROWS:
        return {}
    files: dict[str, Source | None] = {**files_of(source)}
    for each in excluded:
        met = [name for name in files if each.what == "source" and stands_for(each.name, name)]
        files |= dict.fromkeys(met)
        excluded[each] += len(met)
    if not any(files.values()):
        raise InputError(
            f"{settings.exclude} excludes all of {source.source}: name another source as "
            f"prepare.{kind}.source in params.yaml"
        )
    return files


def _prepare_kind(
    folder: Path,
    kind: Kind,
    files: Mapping[str, Source | None],
    params: Params,
    excluded: dict[Exclusion, int],
    *,
    left_out: IO[str],
) -> dict[str, Any]:
    settings = params.prepare
    source = _sources(settings)[kind]
    counts: Counter[str] = Counter()
    read: Counter[str] = Counter()  # rows by source
    tally = Tally.empty()
    rows = tqdm(_rows(kind, files, params, tally), desc=f"prepare {kind}", unit=" rows", disable=None)
    aside: Counter[str] = Counter()  # rows by the reason to leave them out
    shaped = _set_aside(_counted(rows, read, lambda row: row.source), kind, excluded, aside, left_out)
    decided = _decided(_left(shaped, kind, excluded, counts), kind, counts, aside, left_out)
    reserved = RESERVED.get(kind)
    left = _set_aside(reserved(decided, settings), kind, excluded, aside, left_out) if reserved else decided
    chosen = left if source.limit is None else choose(left, source.limit)
    records = _records(_counted(chosen, counts, lambda _: "rows_kept"), kind, settings.split)
    write_records(folder, kind, _counted(records, counts, lambda record: record.split))
    _report(kind, source, tally, aside)
    if files:
        _check_splits(counts, kind, settings, aside.total())
    splits = {split: counts[split] for split in get_args(Split)}
    return {
        "rows_read": read.total(),
        "excluded": counts["excluded"],
        "left_out": dict(sorted(aside.items())),
        **(
            {"votes": {name: counts[name] for name in ("pairs", "merged", "counted", "chosen")}}
            if counts["pairs"]
            else {}
        ),
        "rows_kept": counts["rows_kept"],
        "records": sum(splits.values()),
        **splits,
        "sources": {
            name: {"rows": read[name], **identity(Path(file.source)), **_data_read(file, settings)}
            if file
            else {"excluded": True}
            for name, file in files.items()
        },
        "unused": dict(sorted(tally.unused.items())),
        "ignored": dict(sorted(tally.ignored.items())),
    }


def _data_read(file: Source, settings: Prepare) -> dict[str, str]:
    """Give the hash of what the function of a Python source reads, where its options name it."""
    data = Path(settings.data)
    return {"data_sha256": hash_files(data)} if names_path_in(file.options, data) else {}


def _rows(kind: Kind, files: Mapping[str, Source | None], params: Params, tally: Tally) -> Iterator[ShapedRow]:
    for name, file in files.items():
        if file:
            bad = BadRows(file.source)
            raw = _raw_rows(kind, file, params.prepare, params.seed, bad)
            yield from shape_rows(raw, kind, file, name, bad=bad, tally=tally, reasoning=params.base.reasoning)


def _set_aside(
    rows: Iterable[ShapedRow], kind: Kind, excluded: dict[Exclusion, int], counts: Counter[str], file: IO[str]
) -> Iterator[ShapedRow]:
    """Leave out the rows that say that they are not to be used, and write down which and why."""
    for shaped in rows:
        if shaped.left is None:
            yield shaped
            continue
        _leave_out(shaped, shaped.left, kind, counts, file)
        for each in (each for entry in shaped.entries for each in _exclusions(shaped, entry, kind, excluded)):
            excluded[each] += 1  # it was met, though it is left out already


def _leave_out(shaped: ShapedRow, why: Left, kind: Kind, counts: Counter[str], file: IO[str]) -> None:
    counts[why.reason] += 1
    row = {"file": f"{kind}.jsonl", "source": shaped.source, "row": shaped.row}
    file.write(json.dumps(row | why._asdict(), ensure_ascii=False) + "\n")


def _report(kind: Kind, source: Source, tally: Tally, aside: Counter[str]) -> None:
    """Say once what of the rows is in no record."""
    if tally.unused:
        listed = ", ".join(f"{quoted(name)} ({count:,} rows)" for name, count in sorted(tally.unused.items()))
        logger.warning("%s: columns that nothing reads: %s", kind, listed)
    for name in source.ignore:
        if not tally.ignored[name]:
            logger.warning(
                "prepare.%s.ignore names %s, which no row has: it may be spelt otherwise", kind, quoted(name)
            )
    if aside:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(aside.items()))
        logger.warning(
            "%s: %d rows left out by what they say (%s): see %s",
            kind,
            aside.total(),
            reasons,
            PREPARED / LEFT_OUT,
        )


def choose(rows: Iterable[ShapedRow], limit: int) -> list[ShapedRow]:
    """Keep at most `limit` rows, those with the smallest content hash, in the order of the sources.

    Rows that are added or removed elsewhere in a source change the choice little, and its order not at all.
    """
    chosen = heapq.nsmallest(limit, rows, key=lambda shaped: (content_id(shaped.entries), *_position(shaped)))
    return sorted(chosen, key=_position)


def _position(shaped: ShapedRow) -> tuple[str, int]:
    return shaped.source, shaped.row


def distinct_prompts(rows: Iterable[ShapedRow]) -> Iterator[ShapedRow]:
    """Give each prompt once, as it first appears, with the distinct references and the extra columns of all its rows.

    Where two rows differ in an extra column, such as the answer key, nobody knows which is right: such a prompt is
    given once a row, each to be left out.
    """
    for group in group_by_key(_prompts_by_key(rows)):
        yield from _merged_prompt(group)


def _merged_prompt(group: Iterator[Mapping[str, Any]]) -> Iterator[ShapedRow]:
    first = next(group)
    references, columns, rows, differing = dict[str, None](), dict[str, Any](), dict[tuple[str, int], None](), set()
    for each in chain([first], group):
        references |= dict.fromkeys(each["references"])
        rows[each["source"], each["row"]] = None
        for name, value in each["columns"].items():
            # Python takes 1, 1.0 and True for equal.
            if content_id(columns.setdefault(name, value)) != content_id(value):
                differing.add(name)
    entry = {"prompt": first["prompt"], "references": list(references)}
    merged = ShapedRow(first["source"], first["row"], [entry], first["tag"], columns=columns)
    if not differing:
        yield merged
        return
    detail = f"rows of one prompt differ in {', '.join(sorted(differing))}"
    for source, row in rows:
        yield merged._replace(source=source, row=row, left=Left(DIFFERENT_COLUMNS, detail))


def _prompts_by_key(rows: Iterable[ShapedRow]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for shaped in rows:
        common = {"source": shaped.source, "row": shaped.row, "tag": shaped.tag, "columns": shaped.columns}
        for entry in shaped.entries:
            key = hashlib.blake2b(json.dumps(entry["prompt"]).encode(), digest_size=HASH_BYTES).digest()
            yield key, {**common, **entry}


def _left(
    rows: Iterable[ShapedRow], kind: Kind, excluded: dict[Exclusion, int], counts: Counter[str]
) -> Iterator[ShapedRow]:
    """Leave out what is excluded before `limit` chooses, as if no source held it, and give each pair or prompt once."""
    if kind in ("demonstrations", "ratings"):
        return _without(rows, kind, excluded, counts)
    if kind == "prompts":
        return _without(distinct_prompts(rows), kind, excluded, counts)
    # The votes of an annotator who is left out do not count; a row is left out with all votes on its pair.
    voted = gathered(_without(rows, kind, excluded, counts, by=("annotator",)))
    return _without(voted, kind, excluded, counts, by=("row",))


def _without(
    rows: Iterable[ShapedRow],
    kind: Kind,
    excluded: dict[Exclusion, int],
    counts: Counter[str],
    by: Sequence[What] = ("row", "annotator"),
) -> Iterator[ShapedRow]:
    if not any(each.what in by for each in excluded):  # and spare a hash a row
        yield from rows
        return
    for shaped in rows:
        left = []
        for entry in shaped.entries:
            why = _exclusions(shaped, entry, kind, excluded)
            for each in why:
                excluded[each] += 1
            if any(what in by for what, _ in why):
                counts["excluded"] += len(shaped.votes or [shaped])
            else:
                left.append(entry)
        if left:
            yield shaped._replace(entries=left)


def _exclusions(
    shaped: ShapedRow, entry: Mapping[str, Any], kind: Kind, excluded: Mapping[Exclusion, int]
) -> set[Exclusion]:
    """Find what excludes an entry of a row."""
    if not excluded:  # and spare a hash
        return set()
    ids = ids_of(shaped) if kind in PAIRS else {content_id([kind, entry])}
    return excluded.keys() & {*(("row", each) for each in ids), (TAGS[kind], shaped.tag)}


def _decided(
    rows: Iterable[ShapedRow], kind: Kind, counts: Counter[str], aside: Counter[str], left_out: IO[str]
) -> Iterator[ShapedRow]:
    """Leave out what its rows together do not decide: a pair without a preferred answer, a prompt's extra columns.

    Which, is written down; the votes on other pairs are counted.
    """
    for shaped in rows:
        if shaped.left:
            _leave_out(shaped, shaped.left, kind, aside, left_out)
            continue
        votes = shaped.votes or []
        if shaped.tied:
            aside[TIE] += len(votes) or 1
            row = {"file": f"{kind}.jsonl", "source": shaped.source, "row": shaped.row, "reason": TIE}
            line = {**row, "detail": _undecided(kind, votes), **({"votes": votes} if votes else {})}
            left_out.write(json.dumps(line, ensure_ascii=False) + "\n")
            continue
        if votes:
            counts["pairs"] += 1
            counts["merged"] += len(votes) - 1
            counts["counted"] += sum(vote["counted"] for vote in votes)
            counts["chosen"] += sum(vote["counted"] and vote["choice"] == "chosen" for vote in votes)
        yield shaped


def _undecided(kind: Kind, votes: Sequence[Vote]) -> str:
    if kind == "ratings":
        return "its rating is the threshold, or its label prefers neither answer"
    return "neither answer has most votes" if votes else "its label prefers neither answer"


def _sources(settings: Prepare) -> dict[Kind, Source]:
    return {kind: getattr(settings, kind) for kind in TYPES}


def _raw_rows(kind: Kind, file: Source, settings: Prepare, seed: int, bad: BadRows) -> Iterator[RawRow]:
    # A file of a folder is one of rows: what runs is named by itself.
    is_named = file.source == _sources(settings)[kind].source
    return python_rows(file, kind, seed, bad) if is_named and is_python(file.source) else read_rows(file, bad)


def _records(rows: Iterable[ShapedRow], kind: Kind, shares: Shares) -> Iterator[Record]:
    for shaped in rows:
        voted = {"share": share_of(shaped.votes), "votes": shaped.votes} if shaped.votes else {}
        extra: dict[str, Any] = {"columns": shaped.columns} if shaped.columns else {}
        if kind in PAIRS:
            extra |= {"weight": shaped.weight, "strength": shaped.strength}
        for entry in shaped.entries:
            split, fields = split_of(entry["prompt"], shares), entry | {TAGS[kind]: shaped.tag} | voted | extra
            row_id = pair_id(entry) if kind in PAIRS else content_id([kind, entry])
            yield TYPES[kind](id=row_id, split=split, source=shaped.source, row=shaped.row, **fields)


def _counted(items: Iterable[Item], counts: Counter[str], name: Callable[[Item], str]) -> Iterator[Item]:
    for item in items:
        counts[name(item)] += 1
        yield item


def _check_splits(counts: Counter[str], kind: Kind, settings: Prepare, aside: int) -> None:
    """Stop now rather than hours later, when a trainer or the evaluation finds its split empty."""
    shares, source = settings.split, _sources(settings)[kind].source
    portions = {"train": 1 - shares.validation - shares.test, "validation": shares.validation, "test": shares.test}
    if kind in TRAINING_ONLY:
        portions = {"train": portions["train"]}
    empty = [split for split in portions if not counts[split]]
    if empty:
        records = sum(counts[split] for split in portions)
        needed = max(prompts_needed(portions[split]) for split in empty)
        left = {
            f"the {counts['excluded']} that {settings.exclude} excludes": counts["excluded"],
            f"the {aside} rows that are left out by what they say": aside,
        }
        without = " and ".join(words for words, rows in left.items() if rows)
        gone = f", without {without}," if without else ""
        raise InputError(
            f"{source}: its {records} {kind}{gone} leave nothing for {' and '.join(empty)}: about {needed} "
            "distinct prompts fill every split, so add rows or raise the shares under prepare.split in params.yaml"
        )


if __name__ == "__main__":
    main(prepare)
