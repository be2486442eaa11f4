"""Human evaluation: writing annotation sheets, and importing filled ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from tasks.common.errors import InputError
from tasks.data.splits import root_id
from tasks.evaluation.compare import Resampling
from tasks.evaluation.people import annotation_sheets
from tasks.registry.promotion.human_evaluation import evaluation


class WrittenAnnotationSheet(TypedDict):
    """The result of writing an annotation sheet."""

    file: str
    prompts: int
    different_answers: int  # prompts that can be annotated
    same_answers: int


class ImportedAnnotationSheets(NamedTuple):
    """What people answered on filled annotation sheets."""

    key: str  # hash of the inputs of their evaluation
    figures: dict[str, Any]
    votes: list[dict[str, Any]]


def write_annotation_sheet(path: Path, prompts: int | None) -> WrittenAnnotationSheet:
    """Write an annotation sheet of the evaluation in dvc.lock: all its prompts or `prompts` of them, in random order.

    Raises:
        InputError: the file exists, there is no evaluation, or none of its prompts has two different answers.
    """
    found = evaluation()
    pairs = annotation_sheets.pairs(found.responses, found.seed)
    if not pairs:
        count = len(found.responses)
        raise InputError(f"both models gave the same answers to all {count} prompts: there is nothing to annotate")
    shown = pairs[:prompts]
    annotation_sheets.write_annotation_sheet(path, shown)
    return WrittenAnnotationSheet(
        file=str(path),
        prompts=len(shown),
        different_answers=len(pairs),
        same_answers=len(found.responses) - len(pairs),
    )


def read_annotation_sheets(paths: Sequence[Path]) -> ImportedAnnotationSheets:
    """Read filled annotation sheets of the evaluation in dvc.lock, and count the votes.

    Raises:
        InputError: an annotation sheet cannot be read or is of another evaluation, or there is no evaluation.
    """
    found = evaluation()
    pairs = annotation_sheets.pairs(found.responses, found.seed)
    votes = annotation_sheets.read_votes(paths, pairs)
    resampling = Resampling(found.bootstrap, found.confidence, found.seed)
    conversations = {row["id"]: root_id(row["prompt"]) for row in found.responses}
    figures = annotation_sheets.summarise_votes(votes, len(found.responses) - len(pairs), resampling, conversations)
    return ImportedAnnotationSheets(found.key, figures, list(annotation_sheets.vote_rows(votes)))
