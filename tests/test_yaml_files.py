"""YAML is read within bounds, and only where every reader of it reads the same."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.common.errors import InputError
from tasks.common.yaml_files import MOST_BYTES, difference, parse_yaml, read_yaml
from tasks.settings.params import load_params

SHIPPED = Path(__file__).parents[1] / "params.yaml"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{before}'] * 9)}]\n" for before, this in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(text: str) -> str:
    Path("params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as refused:
        read_yaml(Path("params.yaml"))
    message = str(refused.value)
    assert len(message) < 500
    assert message.isprintable()
    return message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "params.yaml row 5 exceeds 50,000 values, aliases written out"),  # 9 + 81 + … + 9^5 = 66,429
        ("a: &a [*a]\n", "params.yaml row 1 has *a, but no anchor of that name is before it: write the value out"),
        ("a: &a 1\nb: &a [*a]\n", "row 2 has *a, but no anchor of that name is before it"),
        ("a: *b\n", "row 1 has *b, but no anchor"),
        (f"seed: {'7' * 5000}\n", "row 1 has a value of 5,000 characters: shorten it, or put it in quotes"),
        (f"a: {'[' * 3000}{']' * 3000}\n", "row 1 exceeds 20 levels"),
        (f"a: {'{b: ' * 3000}{'}' * 3000}\n", "row 1 exceeds 20 levels"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(1000)), "row 21 exceeds 20 levels"),
        ("- " * 100_000 + "a\n", "row 1 exceeds 20 levels"),
        ("[" * 1_000_000, "row 1 exceeds 20 levels"),
        ("a: 2026-99-99\n", "has a value that cannot be read (month must be in 1..12): fix it, or put it in quotes"),
        ("a: 1\n---\nb: 2\n", "row 2 starts a second document: keep one"),
        ("a: !!python/object/apply:os.system [ls]\n", "row 1 has the tag 'tag:yaml.org,2002:python/object"),
        ("a: !!int '7'\n", "row 1 has the tag 'tag:yaml.org,2002:int': write the value without it"),
        ("a: 1\nb: 2\na: 3\n", "row 3 names a key a second time: keep one of the two"),
        ("a:\t1\n", "row 1 is not valid YAML: fix its indentation, quotes or colons"),  # but DVC's reader takes it
        ("x" * (MOST_BYTES + 1), "has more than 1,048,576 bytes"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)  # fmt: skip
def test_what_is_beyond_the_bounds_is_refused_at_once(text: str, message: str) -> None:
    started = time.process_time()
    assert message in refusal(text)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_file_is_not_waited_for(make: Callable[[Path], None]) -> None:
    make(Path("params.yaml"))
    with pytest.raises(InputError, match=r"^params\.yaml is not a file: put a text file in its place$"):
        load_params()


def test_a_link_to_itself_is_refused() -> None:
    Path("params.yaml").symlink_to("params.yaml")
    with pytest.raises(InputError, match=r"^params\.yaml cannot be read \(Too many levels of symbolic links\): fix"):
        load_params()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # A reader of YAML 1.1 takes words, octal and base-60 numbers for others than DVC's does.
        ("a: {b: yes}\n", "params.yaml: a.b is 'yes' for one YAML parser and True for another: write \"yes\""),
        *((f"a: {word}\n", f'write "{word}"') for word in ("no", "on", "Off", "y", "N")),
        ("a: 012\n", "a is 12 for one YAML parser and 10 for another: write 12, or put it in quotes if it is text"),
        ("a: 0o12\n", "a is 10 for one YAML parser and '0o12' for another: write 10, or"),
        ("a: 089\n", "a is 89 for one YAML parser and '089' for another: write 89, or"),
        (
            "a: [0, 12:30]\n",
            "a is [0, '12:30'] for one YAML parser, and DVC's cannot read it: put its texts in quotes",
        ),
        ("a: 12:30\n", "a is '12:30' for one YAML parser and 750 for another: write \"12:30\""),
        ("yes: 1\n", "yes is 'yes' for one YAML parser and True for another: write \"yes\""),
        ("%YAML 1.1\n---\na: no\n", "a is False for one YAML parser and 'no' for another"),
        # libyaml, which DVC reads by, has no colons within brackets.
        (
            "x: 1\ne:\n  j: {url: http://h:1/v1, model: m}\n",
            "params.yaml row 3: e.j.url is 'http://h:1/v1' for one YAML parser, and DVC's cannot read it: "
            'write "http://h:1/v1"',
        ),
        ("a: \u2028b\n", "a is 'b' for one YAML parser, and DVC's cannot read it"),
        ('a: "\\ud83d"\n', "a is '\\ud83d' for one YAML parser, and DVC's cannot read it"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_what_readers_read_differently_is_refused_with_key_values_and_cure(text: str, message: str) -> None:
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("a: 1e-4\n", {"a": 1e-4}),  # text in YAML 1.1, which no setting takes for that number
        ("a: 1_000\n", {"a": 1000}),
        ("a: ~\nb:\n", {"a": None, "b": None}),
        ("a: 'yes'\n", {"a": "yes"}),
        ("a: http://h:1/v1\n", {"a": "http://h:1/v1"}),
        ("\ufeffa: 1\r\nb: Größe\r\n", {"a": 1, "b": "Größe"}),
        ("a: &a {b: 1}\nc:\n  <<: *a\n  d: 2\n", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("", None),
    ],
)
def test_what_all_read_alike_is_taken(text: str, content: object) -> None:
    Path("params.yaml").write_text(text, encoding="utf-8")
    assert read_yaml(Path("params.yaml")) == content


def test_the_files_of_the_project_hold() -> None:
    for path in (SHIPPED, *SHIPPED.parent.glob("infra/settings/**/*.yaml")):
        assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8"))


CHARACTERS = st.sampled_from("ab01y_:.,-+#&*!|>'\"%@`{}[]?~= \t\n\u00e9\u2028\ufeff\\e")


@settings(max_examples=300, deadline=None)
@given(st.text(CHARACTERS, max_size=12), st.sampled_from(["{}", "a: {}", "a: [{}]", "a: {{b: {}}}", "a:\n  - {}"]))
def test_whatever_is_taken_is_what_dvc_takes(tmp_path_factory, text: str, place: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(place.format(text), encoding="utf-8", newline="")
    try:
        ours = read_yaml(path)
    except InputError:
        return
    assert difference(ours or {}, load_yaml(path)) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "key"),
    [
        ({"a": 1}, {"a": 1.0}, "a"),
        ({"a": [1, True]}, {"a": [1, 1]}, "a[1]"),
        ({"a": {"b": None}}, {"a": {"b": "null"}}, "a.b"),
        ({"a": 1}, {"b": 1}, "a"),
        ({"a": 1}, {"a": 1, "b": 1}, ""),
        ([1], [1, 2], ""),
    ],
)
def test_a_difference_is_found_where_it_is(ours: object, theirs: object, key: str) -> None:
    found = difference(ours, theirs)
    assert found is not None
    assert found.key == key


def test_what_is_alike_has_no_difference() -> None:
    assert difference({"a": [float("nan"), {"b": "x"}]}, {"a": [float("nan"), {"b": "x"}]}) is None


def test_what_only_we_read_need_not_be_alike() -> None:
    assert parse_yaml("{url: http://h:1/v1}", "KEY=VALUE", for_us_alone=True) == {"url": "http://h:1/v1"}
