"""Plain columns for the suites to judge: one line a row, one column a finding or a figure."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.data.checks.lengths import Lengths, measure
from tasks.data.checks.overlap import Findings, Rows, contamination, contradictions, copies, shared_prompts
from tasks.data.checks.patterns import control_pattern, control_tokens, encoding_damage, personal_data
from tasks.data.checks.schema import Row, texts, tidy
from tasks.data.records import ANSWERS, Kind

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase


def tables(rows: Rows, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> dict[Kind, "pd.DataFrame"]:
    """Look at all rows of the three files: one table a file, in the order of its rows.

    Columns of findings hold a short description, or None where nothing was found; columns of figures hold numbers, or
    NaN where a row's shape is wrong.

    Raises:
        InputError: the chat template refuses a row; names file and row.
    """
    import pandas as pd

    pattern = control_pattern(tokenizer)
    shared, contaminated = shared_prompts(rows), contamination(rows)
    made = {}
    for kind, of_kind in rows.items():
        control = [_first(row, lambda text: control_tokens(pattern, text)) for row in of_kind]
        lengths = measure(kind, of_kind, control, tokenizer, folder / f"{kind}.jsonl")
        findings: dict[str, Findings] = {
            "schema": [row.fault for row in of_kind],
            "copy_of": copies(of_kind),
            "held_out_at": shared[kind],
            "gives_away": contaminated[kind],
            "encoding": [_first(row, encoding_damage) for row in of_kind],
            "control_tokens": control,
            "personal_data": [_first(row, personal_data) for row in of_kind],
        }
        columns: dict[str, Any] = {name: pd.Series(found, dtype=object) for name, found in findings.items()}
        columns["holds_personal_data"] = columns["personal_data"].notna() * 1
        made[kind] = pd.DataFrame(_identity(of_kind) | columns | _texts(kind, of_kind) | _figures(kind, lengths))
    return made


def _identity(rows: Sequence[Row]) -> dict[str, Any]:
    import pandas as pd

    split = pd.Series([row.split for row in rows], dtype=object)
    return {
        "place": pd.Series([row.place for row in rows], dtype=object),
        "split": split,
        "training": split.eq("train") * 1,
    }


def _texts(kind: Kind, rows: Sequence[Row]) -> dict[str, Any]:
    import pandas as pd

    sizes = {f"{name}_characters": [_size(row, name) for row in rows] for name in _blankable(kind)}
    columns = {name: pd.Series(values, dtype=float) for name, values in sizes.items()}
    if kind == "preferences":
        columns |= {name: pd.Series([_tidied(row, name) for row in rows], dtype=object) for name in ANSWERS[kind]}
        columns["contradicts"] = pd.Series(contradictions(rows), dtype=object)
    return columns


def _figures(kind: Kind, lengths: list[Lengths | None]) -> dict[str, Any]:
    import pandas as pd

    figures: dict[str, Callable[[Lengths], int | float | None]] = {"tokens": lambda row: row.longest}
    if kind == "preferences":
        figures["first_difference"] = lambda row: row.first_difference
        figures["longer_chosen"] = _longer_chosen
    return {
        name: pd.Series([figure(row) if row else None for row in lengths], dtype=float)
        for name, figure in figures.items()
    }


def _longer_chosen(row: Lengths) -> float | None:
    """1 where the longer answer was chosen, 0 where the shorter was, None for a tie."""
    chosen, rejected = row.answers
    return None if chosen == rejected else float(chosen > rejected)


def _first(row: Row, find: Callable[[str], str | None]) -> str | None:
    return next(filter(None, map(find, texts(row.record))), None)


def _blankable(kind: Kind) -> tuple[str, ...]:
    return ("prompt", *(ANSWERS[kind] or ("references",)))


def _size(row: Row, field: str) -> int | None:
    """Characters in the emptiest text of a field, white space around it aside; None where there is none to judge."""
    if row.fault:
        return None
    if field == "prompt":  # a blank system message is a common way to have none
        said = [message["content"] for message in row.prompt if message["role"] != "system"]
    else:
        said = row.record[field] if field == "references" else [row.record[field]]
    return min((len(text.strip()) for text in said), default=None)


def _tidied(row: Row, field: str) -> str | None:
    return None if row.fault else tidy(row.record[field])
