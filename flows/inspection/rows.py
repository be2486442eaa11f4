"""One row as models are given it: its text in the chat template, its tokens, and which of them are learned."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.common.errors import InputError
from tasks.common.files import AI_VALIDATED, MODELS, PREPARED, STATE, VALIDATED, read_jsonl
from tasks.common.safe_text import quoted
from tasks.data.records import ANSWERS, TYPES, Kind

if TYPE_CHECKING:  # transformers costs seconds to import
    from transformers import PreTrainedTokenizerBase

# Where validate writes the rows that it refuses: beside the valid ones, or alone where it has stopped.
QUARANTINES = tuple(folder / "quarantine.jsonl" for folder in (VALIDATED, AI_VALIDATED, STATE))


def examine_row(row_id: str) -> list[dict[str, Any]]:
    """Show a row of data/validate or data/prepare, or one in quarantine, as the stages encode it.

    Args:
        row_id: an id; rows of two kinds may share one.

    Returns:
        For each such row its place, the reasons it is in quarantine for, and its parts: of each the text in the chat
        template and its tokens (id, text, whether a loss is taken on it), or why the template refuses it.

    Raises:
        InputError: there is no such row, or no tokenizer yet.
    """
    from tasks.data.encoding.tokens import load_tokenizer

    if not (MODELS / "base").is_dir():
        raise InputError(f"{MODELS / 'base'} does not exist: run the stage that writes it (dvc repro base)")
    found = list(_found(row_id))
    if not found:
        raise InputError(
            f"no row in {VALIDATED} or {PREPARED} has the id {quoted(row_id)}: take one from a file there, or run"
            " trueline run"
        )
    tokenizer = load_tokenizer(MODELS / "base")
    return [_examined(tokenizer, *each) for each in found]


def _found(row_id: str) -> Iterator[tuple[Kind, Mapping[str, Any], Mapping[str, Any]]]:
    """Rows with an id: kind, record, and what the quarantine says of it; the latest place of each kind."""
    kinds: dict[str, Kind] = {f"{kind}.jsonl": kind for kind in TYPES}
    seen = set()
    for file in filter(Path.exists, QUARANTINES):
        for line in read_jsonl(file):
            if line["id"] == row_id and line["file"] not in seen:
                seen.add(line["file"])
                yield kinds[line["file"]], line["record"], line
    for file in (folder / name for folder in (VALIDATED, AI_VALIDATED, PREPARED) for name in kinds):
        if file.name in seen or not file.exists():
            continue
        for record in read_jsonl(file):
            if record["id"] == row_id:
                seen.add(file.name)
                yield kinds[file.name], record, {}
                break


def _examined(
    tokenizer: "PreTrainedTokenizerBase", kind: Kind, record: Mapping[str, Any], quarantine: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "kind": kind,
        **{field: record.get(field) for field in ("id", "split", "source", "row")},
        "quarantined": quarantine.get("reasons", []),
        "found": {check: what for check, what in quarantine.get("found", {}).items() if what},
        "truncated": record.get("truncated") or {},
        "parts": _parts(tokenizer, kind, record),
    }


def _parts(tokenizer: "PreTrainedTokenizerBase", kind: Kind, record: Mapping[str, Any]) -> Any:  # noqa: ANN401
    from tasks.data.encoding.tokens import as_text, encode_written, write_texts

    answers = ANSWERS[kind]
    [written] = write_texts(tokenizer, [as_text(kind, record)])
    [encoded] = encode_written(tokenizer, [written])
    if isinstance(written, InputError) or isinstance(encoded, InputError):
        return [{"part": "prompt", "refused": str(written if isinstance(written, InputError) else encoded)}]
    prompt = _tokens(tokenizer, encoded[0], learned=False)
    if not answers:
        return [{"part": "prompt", "text": written.prompt, "tokens": prompt}]
    return [
        {
            "part": name,
            "text": text if place in written.cut else f"{text}{tokenizer.eos_token}",
            "tokens": [*prompt, *_tokens(tokenizer, completion, learned=True)],
        }
        for place, (name, text, completion) in enumerate(zip(answers, written.answers, encoded[1:], strict=True))
    ]


def _tokens(tokenizer: "PreTrainedTokenizerBase", ids: list[int], *, learned: bool) -> list[dict[str, Any]]:
    return [{"id": number, "text": tokenizer.decode([number]), "learned": learned} for number in ids]
