"""Which settings the code of a stage reads while it runs, beside those that dvc.yaml lists for it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from tasks.methods import METHODS
from tasks.settings.fingerprint import CHANGE_NO_RESULT
from tasks.settings.params import Gate, Params
from tasks.settings.section import Section
from tests.conftest import ROOT
from tests.test_dvc import OBSERVERS


@contextmanager
def recorded(params: Params) -> Iterator[set[str]]:
    """Collect the dotted names of all settings that modules of tasks read, but for those that cannot change a byte.

    A copied section counts as the one it was copied from, or as every section of its kind.
    """
    found: set[str] = set()
    names = dict(sections(params))
    by_id = {id(section): name for name, section in names.items()}

    def read(section: Section, attribute: str) -> Any:
        value = object.__getattribute__(section, attribute)
        reader = sys._getframe(1).f_globals.get("__name__", "")
        field = type(section).model_fields.get(attribute)
        if field and reader.startswith("tasks.") and not reader.startswith(OBSERVERS) and not is_section(value):
            at = by_id.get(id(section))
            places = [at] if at is not None else [name for name, each in names.items() if type(each) is type(section)]
            found.update(f"{place}.{field.alias or attribute}".lstrip(".") for place in places)
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", read)
        yield found


def sections(section: Section, name: str = "") -> Iterator[tuple[str, Section]]:
    """The section and all within it, by their dotted names."""
    yield name, section
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            yield from sections(value, f"{name}.{field.alias or key}".lstrip("."))


def is_section(value: object) -> bool:
    return isinstance(value, Section)


def listed_settings(stage: str, method: str) -> set[str]:
    """The settings and sections of params.yaml that dvc.yaml names for a stage."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8").replace("${align.stage}", method)
    given = yaml.safe_load(text)["stages"]["align" if stage == method else stage].get("params", [])
    return {name for each in given for name in (each["params.yaml"] if isinstance(each, dict) else [each])}


def check_settings_read(read: set[str], stage: str, method: str) -> None:
    """Make sure that a stage read what dvc.yaml lists for it, and nothing else that could change a byte."""
    listed = listed_settings(stage, method)
    read = read - {f"runtime.{name}" for name in CHANGE_NO_RESULT}
    missing = {name for name in read if not any(is_within(name, each) for each in listed)}
    assert not missing, f"{stage} reads what dvc.yaml does not list for it: {missing}; a change would not make it stale"
    if stage == "reward_check" and "rewards" not in METHODS[method].learns_from:
        return  # there is nothing to check
    if stage == method and "rewards" not in METHODS[method].learns_from:
        listed -= {"rewards.training", "rewards.combine"}  # dvc.yaml has one stage for all methods
    if stage in (method, "prepare"):
        listed -= {"base.reasoning"}  # only functions are given the text of answers; no row here has reasoning
    if stage == "gate":
        unread = {f"gate.{name}" for name in Gate.model_fields} - read
        assert not unread, f"no check of the gate reads its threshold {unread}"
    idle = {each for each in listed if not any(is_within(name, each) for name in read)}
    assert not idle, f"dvc.yaml lists for {stage} what it does not read: {idle}; a change makes it stale for nothing"


def is_within(name: str, listed: str) -> bool:
    return name == listed or name.startswith(f"{listed}.")
