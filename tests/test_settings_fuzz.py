"""Whatever stands in params.yaml: one bounded sentence and exit code 2, or the settings that every reader reads."""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import load_yaml

from tasks.common.errors import InputError
from tasks.common.safe_text import LONGEST_SENTENCE
from tasks.common.yaml_files import difference, read_yaml
from tasks.settings.params import Params, load_params
from tasks.stage import classify
from tests.test_section import leaves

pytestmark = pytest.mark.fuzz
SEEDS = int(os.environ.get("TRUELINE_FUZZ_SEEDS", "100"))
SETTINGS: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8"))
SHIPPED = yaml.safe_dump(SETTINGS, sort_keys=False)  # without the comments, which are most of it
# As they would stand behind a key.
VALUES = [
    *("", "~", "null", "yes", "No", "on", "y", "true", "TRUE", "tRuE", "0", "-0", "-0.0", "1", "-1", "012", "0o12"),
    *("0x1F", "0b11", "1_000", "1e-4", "1E4", "1e999", ".inf", "-.Inf", ".nan", "12:30", "1:30.5", "2026-01-01"),
    *("2026-99-99", "=", "<<", "a: b", "a:b", "{a:b}", "{a: b}", "[a: b]", "[", "]", "{", "}", "- 1", "? a", "*a"),
    *("&a 1", "&a [*a]", "!!int 1", "!foo", "|\n      a", ">-\n      a", "'", '"', "'a'b", '"\\ud83d"', '"\\x00"'),
    *('"\\u2028"', "'\\n'", "#", "a #b", "@a", "`a`", "%a", "http://h:1/v1", "{u: http://h:1}", "9" * 400, "9" * 5000),
    *("a" * 3000, "[" * 50 + "]" * 50, "\t", "a\tb", "\u00a0", "\u2028", "\ufeff", "\x85", "\x00", "\x1b[31m", "é"),
    *("😀", "np.float64(1.0)", "9007199254740993", "1.0"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mutate", ["value", "line", "character", "structure", "bytes"])
def test_any_params_yaml_is_refused_or_read_alike_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutate: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("params.yaml")
    taken = 0
    for seed in range(SEEDS):
        chance = random.Random(f"{mutate} {seed}")
        path.write_bytes(MUTATIONS[mutate](chance) if seed else encoded(SHIPPED))
        try:
            params = load_params()
        except InputError as error:
            message = str(error)
            assert message.startswith("params.yaml"), (seed, message)
            assert message.isprintable()
            assert len(message) < LONGEST_SENTENCE + 100
            assert classify(error)[0] == "input"
        else:
            taken += 1
            read = load_yaml(path)
            assert isinstance(params, Params)
            assert difference(read_yaml(path), read) is None, seed
            Params.model_validate(read)
    assert taken


def with_value(chance: random.Random) -> bytes:
    """Another text behind one key or two."""
    lines = SHIPPED.splitlines()
    for _ in range(chance.choice([1, 1, 2])):
        place = chance.choice([number for number, line in enumerate(lines) if ": " in line])
        other = chance.choice(lines).partition(": ")[2] if chance.random() < 0.5 else chance.choice(VALUES)
        lines[place] = f"{lines[place].partition(':')[0]}: {other}"
    return encoded("\n".join(lines))


def with_line(chance: random.Random) -> bytes:
    """Lines doubled, lost, exchanged, moved in or out."""
    lines = SHIPPED.splitlines()
    for _ in range(chance.randint(1, 3)):
        one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
        match chance.randrange(5):
            case 0:
                lines.insert(other, lines[one])
            case 1:
                del lines[one]
            case 2:
                lines[one], lines[other] = lines[other], lines[one]
            case 3:
                lines[one] = " " * chance.randint(1, 4) + lines[one]
            case _:
                lines[one] = lines[one].lstrip()
    return encoded("\n".join(lines))


def with_character(chance: random.Random) -> bytes:
    """Characters that mean something to YAML, put in or in the place of others."""
    text = list(SHIPPED)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(text))
        text[place : place + chance.randint(0, 1)] = chance.choice(
            "\t\n :-?[]{}#&*!|>'\"%@`,.0\x00\x1b\x85\u2028\ufeffé"
        )
    return encoded("".join(text))


def with_structure(chance: random.Random) -> bytes:
    """Settings, sections and lists of other kinds, as JSON, which is YAML too."""
    settings = copy.deepcopy(SETTINGS)
    for _ in range(chance.randint(1, 3)):
        *sections, key = chance.choice([path for path, _ in leaves(settings)])
        place = settings
        for name in sections[: chance.randint(0, len(sections))]:
            place = place[name]
        name = key if key in place else chance.choice(sorted(place))
        value: Any = chance.choice(
            [None, True, 0, -0.0, 1, 2**60, 0.5, 1e300, "", "a", [], [1, "a"], {}, {"a": 1}, [[[]]], {"": None}]
        )
        match chance.randrange(3):
            case 0:
                place[name] = value
            case 1:
                del place[name]
            case _:
                place[chance.choice(["a", "", "seed", "sft", "a b"])] = value
        if not settings:
            break
    return encoded(json.dumps(settings, ensure_ascii=False))


def with_bytes(chance: random.Random) -> bytes:
    """Bytes of any kind in places of any number, or nothing but them."""
    content = bytearray(encoded(SHIPPED) if chance.random() < 0.7 else b"")
    for _ in range(chance.randint(1, 40)):
        place = chance.randrange(len(content) + 1)
        put = chance.randbytes(chance.randint(0, 3))
        content[place : place + chance.randint(0, 3)] = put if chance.random() < 0.02 else bytes(b & 127 for b in put)
    return bytes(content)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


MUTATIONS: dict[str, Callable[[random.Random], bytes]] = {
    "value": with_value,
    "line": with_line,
    "character": with_character,
    "structure": with_structure,
    "bytes": with_bytes,
}
