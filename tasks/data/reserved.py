"""Rows that are for some splits alone: those on prompts of another split are marked as left out."""

from collections.abc import Iterable, Iterator

from tasks.common.errors import InputError, quoted
from tasks.data.names import as_name
from tasks.data.shapes.convert import ShapedRow
from tasks.data.shapes.statements import Left
from tasks.data.splits import split_of
from tasks.settings.params import Prepare

TEST_ONLY, HELD_OUT = "test_only", "held_out"  # reasons


def test_only(prompts: Iterable[ShapedRow], settings: Prepare) -> Iterator[ShapedRow]:
    """Mark the prompts of a category that is for tests alone, unless they are of the test split.

    Raises:
        InputError: no prompt has one of the categories.
    """
    names = {as_name(name): name for name in settings.prompts.test_only}  # by their spelling in records
    unmet = dict(names)
    for shaped in prompts:
        unmet.pop(shaped.tag or "", None)
        away = shaped.tag in names and split_of(shaped.entries[0]["prompt"], settings.split) != "test"
        why = Left(TEST_ONLY, f"category {shaped.tag} is for the test split alone") if away else None
        yield shaped._replace(left=why)
    if unmet:
        listed = ", ".join(quoted(name) for name in sorted(unmet.values()))
        raise InputError(
            f"{settings.prompts.source}: no prompt has the category {listed}, which prepare.prompts.test_only in "
            "params.yaml names: correct the name"
        )


def training_only(pairs: Iterable[ShapedRow], settings: Prepare) -> Iterator[ShapedRow]:
    """Mark the pairs on prompts that are held out: there people's measure what is learned."""
    for shaped in pairs:
        split = split_of(shaped.entries[0]["prompt"], settings.split)
        why = None if split == "train" else Left(HELD_OUT, f"its prompt is in the {split} split")
        yield shaped._replace(left=why)
