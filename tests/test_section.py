"""Every number of params.yaml is a plain one: none that is infinite, none that is not, none that stands for another."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import dumps_yaml, loads_yaml
from pydantic import BaseModel

from tasks.common.errors import InputError
from tasks.settings.params import Lora, Params, parse_params

SHIPPED: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))
SHIPPED["evaluate"]["llm_judge"] = {"url": "http://localhost/v1", "model": "m", "prompts": 9}
NO_NUMBERS = [
    *(float("inf"), float("-inf"), float("nan"), -0.0, 1e999, 1e300, 2**53 + 1, -(2**53) - 1, 10**5000, -1, -0.5),
    *(True, False, "1", "np.float64(1.0)", "1_000", "0x10", "inf", "nan", [], [1], {}, {"a": 1}, b"1"),
]
MAY_BE_NEGATIVE = {"dpo.simpo_gamma", "freshness.min_agreement", "prepare.ratings.threshold", "rewards.training.weight"}


def fields(section: type[BaseModel] = Params, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting that is not itself a section, those of optional sections too."""
    for name, field in section.model_fields.items():
        here = (*path, field.alias or name)
        inner = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_section(kind)]
        for kind in inner:
            yield from fields(kind, here)
        if not inner:
            yield here, field


def is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def with_value(path: tuple[str, ...], value: object) -> dict[str, Any]:
    first, *rest = path

    def laid(settings: Any, names: list[str]) -> Any:
        if isinstance(settings, list):
            return [laid(settings[0], names), *settings[1:]]
        name, *further = names
        return settings | {name: laid(settings[name], further) if further else value}

    changed: dict[str, Any] = laid(SHIPPED, [first, *rest])
    return changed


NUMERIC = [
    path
    for path, field in fields()
    if any(
        kind in (int, float)
        for kind in (
            field.annotation,
            *(getattr(each, "__origin__", each) for each in getattr(field.annotation, "__args__", ())),
        )
    )
]


def test_the_walk_meets_every_number() -> None:
    """Those of params.yaml but for a function's own (tests/test_params.py), and of the optional section."""
    shipped = {path for path, value in leaves(SHIPPED) if type(value) in (int, float) and "options" not in path}
    assert shipped <= set(NUMERIC)
    assert {("evaluate", "llm_judge", "prompts"), ("ppo", "dual_clip"), ("prepare", "prompts", "limit")} <= set(NUMERIC)


def leaves(settings: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


@pytest.mark.parametrize("path", NUMERIC, ids=".".join)
def test_no_number_is_anything_but_a_plain_one(path: tuple[str, ...]) -> None:
    taken = []
    for value in NO_NUMBERS:
        try:
            parse_params(with_value(path, value))
        except InputError as error:
            assert ".".join(path) in re.sub(r"\.\d+\.", ".", str(error)) or "must" in str(error)
            assert len(str(error)) < 500
        else:
            taken.append(value)
    assert taken == ([-1, -0.5] if ".".join(path) in MAY_BE_NEGATIVE else [])


@pytest.mark.parametrize("value", [float("inf"), -0.0, 2**53 + 1])
def test_nor_within_a_list(value: float) -> None:
    with pytest.raises(ValueError, match="targets"):
        Lora.model_validate({"rank": 0, "alpha": 1.0, "targets": ["a", value]})


@pytest.mark.parametrize(
    ("key", "value"),
    [("runtime.threads", 10**5), ("evaluate.bootstrap", 10**7), ("base.scratch.layers", 10**4), ("sft.epochs", 10**10)],
)
def test_what_no_machine_can_do_is_refused(key: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"{key} is {value}, but input should be less than or equal to"):
        parse_params(with_value(tuple(key.split(".")), value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runtime.launcher", "a\x85b"),
        ("validate.warn", ["a", "\x85"]),
        ("prepare.prompts.columns", {"prompt": "\x85"}),
        ("prepare.prompts.columns", {"\x85": "a"}),
    ],
)
def test_what_dvc_does_not_keep_is_refused(key: str, value: object) -> None:
    assert loads_yaml(dumps_yaml({"a": "b\x85c"})) != {"a": "b\x85c"}  # or the rule may go
    with pytest.raises(InputError, match=rf"{key}: it has the character \\x85"):
        parse_params(with_value(tuple(key.split(".")), value))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), "sft.learning_rate: inf is no number that a setting can have: change it"),
        (float("nan"), "sft.learning_rate: nan is no number that a setting can have: change it"),
        (-0.0, "sft.learning_rate: -0.0 is no number that a setting can have: write 0.0"),
        (2**53 + 1, "sft.learning_rate: 9007199254740993 is larger than any setting: change it"),
    ],
)
def test_a_value_out_of_range_is_refused(value: float, message: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_params(with_value(("sft", "learning_rate"), value), "params.yaml")
    assert str(refused.value) == f"params.yaml: {message}"
