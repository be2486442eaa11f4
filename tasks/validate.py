"""Reads data/prepare and models/base, writes data/validate, data/ai_preferences and metrics/validate.json.

Every row is looked at (tasks/data/checks/tables.py), Great Expectations tests what was found (suites.py), and rows
with errors go to quarantine.jsonl there with their reasons. People read .trueline/data_docs/index.html.
"""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.common.errors import InputError
from tasks.common.files import AI_VALIDATED, MODELS, PREPARED, STATE, VALIDATED, read_jsonl, replacing, write_jsonl
from tasks.common.lines import Lines
from tasks.common.record import write_record
from tasks.data.checks.pages import Examined, render
from tasks.data.checks.quarantine import Sorted, file_figures, quarantine_lines, sort_rows, summary, warnings
from tasks.data.checks.suites import (
    FILE_CHECKS,
    MAY_BE_EMPTY,
    NEEDED_SPLITS,
    NEVER_ONLY_WARN,
    ROW_CHECKS,
    CheckResult,
    data_context,
    row_suite,
    run_expectations,
    valid_suite,
)
from tasks.data.checks.tables import tables
from tasks.data.checks.truncation import truncated
from tasks.data.checks.validation import VALIDATION, Validation
from tasks.data.encoding.context import context_described, context_of
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import TYPES, Kind, validated_folder
from tasks.settings.params import Params, Validate
from tasks.stage import main

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.data_context import EphemeralDataContext
    from transformers import PreTrainedTokenizerBase

DATA_DOCS = STATE / "data_docs"
# Where the quarantine lies when the stage has stopped, and its outputs are those of an earlier run.
STOPPED_QUARANTINE = STATE / "quarantine.jsonl"
logger = logging.getLogger(__name__)


def validate(params: Params) -> None:
    """Check the prepared rows, and pass the valid ones on.

    Raises:
        InputError: an unknown check in `warn`; max_tokens over the model's context; a row that the chat template
            refuses; too many quarantined rows, too few training rows, an empty split; a slant of the whole file whose
            check does not only warn.
    """
    settings, reasoning = params.validate_, params.base.reasoning
    STOPPED_QUARANTINE.unlink(missing_ok=True)
    longest = longest_rows(settings, MODELS / "base")
    tokenizer = load_tokenizer(MODELS / "base")
    with within_length(settings, longest, tokenizer) as prepared:
        looked_at = tables(prepared, tokenizer, (reasoning.start, reasoning.end) if reasoning else ())
        _check(settings, longest, prepared, looked_at)


def _check(
    settings: Validate,
    longest: Mapping[Kind, int],
    prepared: Mapping[Kind, Lines],
    looked_at: Mapping[Kind, "pd.DataFrame"],
) -> None:
    context, examined = data_context(), []
    for kind, table in looked_at.items():
        results = run_expectations(context, kind, table, row_suite(kind, longest[kind]))
        file = sort_rows(kind, prepared[kind], table, results, settings.warn)
        examined.append(Examined(file, results, _of_valid(context, file, settings)))
    _write_docs(examined, settings)
    files = [each.file for each in examined]
    unmet = {each.file.kind: {one.check: one for one in each.of_valid if not one.success} for each in examined}
    _stop_if_unmet(files, unmet, settings)
    sentences = [sentence for file in files for sentence in warnings(file, unmet[file.kind], _limits(settings))]
    for sentence in sentences:
        logger.warning(sentence)
    _write(files)
    figures = {file.kind: file_figures(file, truncates=settings.truncate is not None) for file in files}
    write_record(VALIDATION, Validation(**figures, warnings=sentences))


@contextmanager
def within_length(
    settings: Validate, longest: Mapping[Kind, int], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[dict[Kind, Lines]]:
    """Give the prepared rows; where validate.truncate says so, long ones cut to the most tokens of their kind.

    Cut rows lie in a temporary file, which is gone afterwards.

    Raises:
        InputError: a file is missing or damaged.
    """
    if settings.truncate is None:
        yield {kind: Lines(PREPARED / f"{kind}.jsonl") for kind in TYPES}
        return
    STATE.mkdir(parents=True, exist_ok=True)  # the system's folder for temporary files may be in memory
    with tempfile.TemporaryDirectory(dir=STATE) as temporary_folder:
        files = {kind: Path(temporary_folder) / f"{kind}.jsonl" for kind in TYPES}
        for kind, file in files.items():
            rows = read_jsonl(PREPARED / file.name)
            write_jsonl(file, truncated(kind, rows, tokenizer, settings.truncate, longest[kind]))
        yield {kind: Lines(file) for kind, file in files.items()}


def longest_rows(settings: Validate, base: Path) -> dict[Kind, int]:
    """Most tokens of a row of each kind; a prompt must leave room for the longest answer.

    Raises:
        InputError: the settings do not fit the context of the base model.
    """
    context = context_of(base)
    _check_settings(settings, base, context)
    longest_prompt = settings.max_tokens - 1
    if context is not None:
        longest_prompt = min(longest_prompt, context - settings.max_new_tokens)
    if longest_prompt < 1:
        raise InputError(
            f"params.yaml: answers of {settings.max_new_tokens} new tokens (validate.max_new_tokens) fill the context "
            f"of {base}, {context} tokens: lower it"
        )
    return {**dict.fromkeys(TYPES, settings.max_tokens), "prompts": longest_prompt}


def _check_settings(settings: Validate, base: Path, context: int | None) -> None:
    known = [check for check in (*ROW_CHECKS, *FILE_CHECKS) if check not in NEVER_ONLY_WARN]
    for check in settings.warn:
        if check not in known:
            raise InputError(
                f"params.yaml: validate.warn names {check!r}, but may name only {', '.join(known)}: fix it"
            )
    if context is not None and settings.max_tokens > context:
        raise InputError(
            f"params.yaml: validate.max_tokens is {settings.max_tokens}, but {base} has {context_described(base)}: "
            "lower it or take a base model with a longer context"
        )


def _limits(settings: Validate) -> dict[str, float]:
    return {"length_bias": settings.max_length_bias, "personal_data": settings.max_personal_data}


def _of_valid(context: "EphemeralDataContext", file: Sorted, settings: Validate) -> list[CheckResult]:
    """What comes of the expectations of the valid rows."""
    if file.kind in MAY_BE_EMPTY and not len(file.records):
        return []
    # 1e-9: 0.29 * 100 is 28.999999999999996, but 29 rows may go.
    rows, valid = len(file.records), file.valid_table
    fewest = rows - int(settings.max_quarantined * rows + 1e-9)
    suite = valid_suite(file.kind, valid, fewest, settings.min_rows, _limits(settings))
    return run_expectations(context, f"{file.kind}-valid", valid, suite)


def _write_docs(examined: Sequence[Examined], settings: Validate) -> None:
    with replacing(DATA_DOCS) as folder:
        folder.mkdir()
        (folder / "index.html").write_text(render(examined, settings.warn), encoding="utf-8")


def _stop_if_unmet(
    files: Iterable[Sorted], unmet: Mapping[Kind, Mapping[str, CheckResult]], settings: Validate
) -> None:
    files = list(files)
    for file in files:
        for check, complaint in _complaints(file, settings).items():
            if check in unmet[file.kind] and check not in settings.warn:
                write_jsonl(STOPPED_QUARANTINE, quarantine_lines(files))
                look = f"see {STOPPED_QUARANTINE} and {DATA_DOCS / 'index.html'}"
                raise InputError(f"{PREPARED / file.kind}.jsonl: {complaint} ({summary(file)}); {look}")


def _complaints(file: Sorted, settings: Validate) -> dict[str, str]:
    """What to say where an expectation of the valid rows fails, by its check, the most telling first."""
    total, table = len(file.records), file.valid_table
    empty = [split for split in NEEDED_SPLITS[file.kind] if split not in set(table["split"])]
    return {
        "max_quarantined": f"{file.quarantined} of {total} rows are bad, more than the share validate.max_quarantined "
        f"{settings.max_quarantined} allows: fix the rows or raise it",
        "min_rows": f"{int(table['training'].sum())} training rows are left of {total} rows, fewer than "
        f"validate.min_rows {settings.min_rows}: add rows or lower it",
        "splits": f"no row is left in the split {' or '.join(empty)}: add rows or raise prepare.split",
        "length_bias": "the longer answer was chosen in more than the share validate.max_length_bias "
        f"{settings.max_length_bias} of the pairs: balance them, raise it, or let length_bias warn",
    }


def _write(files: Iterable[Sorted]) -> None:
    files = list(files)
    with replacing(VALIDATED) as draft, replacing(AI_VALIDATED) as extra:
        for place, folder in ((VALIDATED, draft), (AI_VALIDATED, extra)):
            own = [file for file in files if validated_folder(file.kind) == place]
            for file in own:
                write_jsonl(folder / f"{file.kind}.jsonl", file.valid)
            write_jsonl(folder / "quarantine.jsonl", quarantine_lines(own))


if __name__ == "__main__":
    main(validate)
