"""params.yaml: it loads, every key is explained, and whatever is wrong in it is reported in one sentence."""

import re
from collections.abc import Iterator
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from tasks.common.errors import InputError
from tasks.methods import METHODS
from tasks.settings import choices
from tasks.settings.params import RENAMED, RENAMED_VALUES, LlmJudge, load_params, parse_params

SHIPPED = Path(__file__).parents[1] / "params.yaml"
TRAINING = ["epochs", "batch_size", "learning_rate", "warmup_ratio", "schedule", "weight_decay", "max_grad_norm"]
# Explained where they come first; the comment above the section, or the order, says so.
HEAD = ["pooling", "head_init", "head_l2", "head_learning_rate"]
EXPLAINED_ELSEWHERE = {
    f"{section}.{key}": f"{first}.{key}"
    for first, sections, keys in [
        ("sft", ["reward", "held_out_reward", "dpo", "kto"], TRAINING),
        ("dpo", ["kto"], ["evaluation_points", "max_new_tokens"]),
        (
            "reward",
            ["held_out_reward"],
            [
                *HEAD,
                "early_stopping",
                "ensemble",
                "ensemble_penalty",
                "margin",
                "strength_margin",
                "centering",
                "label_smoothing",
            ],
        ),
        (
            "prepare.demonstrations",
            ["prepare.preferences", "prepare.prompts"],
            ["source", "columns", "ignore", "limit"],
        ),
        ("prepare.demonstrations", ["prepare.ratings"], ["columns", "ignore", "limit"]),
        ("prepare.demonstrations", ["prepare.ai_preferences"], ["source", "columns", "ignore", "limit", "options"]),
    ]
    for section in sections
    for key in keys
}


def shipped() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    return settings


def changed(**changes: object) -> dict[str, Any]:
    """The shipped settings with some replaced; a double underscore stands for the dot: sft__epochs=3."""
    settings = shipped()
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = settings
        for section in sections:
            place = place[section]
        place[key] = value
    return settings


def by(method: str) -> dict[str, str]:
    return {"method": method, "stage": method}


def complaint(settings: dict[str, Any]) -> str:
    with pytest.raises(InputError) as refused:
        parse_params(settings, "params.yaml")
    message = str(refused.value)
    assert "\n" not in message
    return message


def key_lines(section: CommentedMap, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Every key with dots before its name, and its line from 0."""
    for key, value in section.items():
        yield f"{prefix}{key}", section.lc.key(key)[0]
        if isinstance(value, CommentedMap) and not value.fa.flow_style():
            yield from key_lines(value, f"{prefix}{key}.")


def explained() -> dict[str, bool]:
    """Whether a comment stands on the line above a key or behind its value."""
    text = SHIPPED.read_text(encoding="utf-8")
    lines = text.splitlines()
    return {
        key: " # " in lines[line] or lines[line - 1].lstrip().startswith("# ")
        for key, line in key_lines(YAML().load(text))
    }


def test_the_shipped_settings_hold():
    params = load_params(SHIPPED)
    assert params.model_dump(by_alias=True) == shipped()


def test_every_key_has_a_comment():
    found = explained()
    assert {"seed", "sft", "sft.epochs", "base.scratch.context"} <= found.keys()
    assert [key for key, has_comment in found.items() if not has_comment] == [
        key for key in found if key in EXPLAINED_ELSEWHERE
    ]
    assert all(found[first] for first in EXPLAINED_ELSEWHERE.values())


def test_every_choice_is_named_in_params_yaml():
    comments = " ".join(line.partition("# ")[2] for line in SHIPPED.read_text(encoding="utf-8").splitlines())
    lists = {name: get_args(each) for name, each in vars(choices).items() if get_origin(each) is Literal}
    assert "PreferenceLoss" in lists
    for name in (*chain.from_iterable(lists.values()), *METHODS):
        assert re.search(rf"\b{name}\b", comments), f"{name} can be chosen, but no comment in params.yaml says so"


def test_settings_do_not_change():
    params = load_params(SHIPPED)
    with pytest.raises(ValueError, match="frozen"):
        params.seed = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "params.yaml does not exist: run from the project's root, where it lies"),
        (b"", "params.yaml holds no settings: restore it from git"),
        (b"# only a comment\n", "params.yaml holds no settings: restore it from git"),
        (b"- seed\n", "params.yaml holds no settings: restore it from git"),
        (
            b"seed: 7\nsft: {epochs: 3\nreward: 1\n",
            "params.yaml row 3 is not valid YAML: fix its indentation, quotes or colons",
        ),
        (b"seed: 7\n\tsft: 1\n", "params.yaml row 2 is not valid YAML: fix its indentation, quotes or colons"),
        ("seed: 7 # Größe\n".encode("latin-1"), "params.yaml is not UTF-8 text (byte 12): save it as UTF-8"),
    ],
    ids=["missing", "empty", "comment", "list", "bracket", "tab", "latin-1"],
)
def test_a_file_that_holds_no_settings(tmp_path, monkeypatch, content, sentence):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("params.yaml").write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_params()
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"sft__epoch": 3}, "sft.epoch is not a setting: remove it or correct its spelling"),
        ({"speed": 3}, "speed is not a setting: remove it or correct its spelling"),
        ({"sft__epochs": "three"}, "sft.epochs is 'three', but input should be a valid integer: change it"),
        ({"sft__epochs": 2.0}, "sft.epochs is 2.0, but input should be a valid integer: change it"),
        ({"sft__epochs": True}, "sft.epochs is True, but input should be a valid integer: change it"),
        ({"sft__epochs": 0}, "sft.epochs is 0, but input should be greater than or equal to 1: change it"),
        ({"sft__epochs": None}, "sft.epochs is None, but input should be a valid integer: change it"),
        ({"ppo__whiten_rewards": "yes"}, "ppo.whiten_rewards is 'yes', but input should be a valid boolean: change it"),
        ({"runtime__device": "gpu"}, "runtime.device is 'gpu', but input should be 'auto', 'cpu' or 'cuda': change it"),
        ({"validate__warn": "length"}, "validate.warn is 'length', but input should be a valid list: change it"),
        (
            {"registry__policy": "trueline\u200b"},
            r"registry.policy is 'trueline\u200b', but string should match pattern '^[^\p{C}]+$': change it",
        ),
        ({"sft": 3}, "sft is 3, but input should be a valid dictionary or instance of Sft: change it"),
        (
            {"sft__epochs": 0, "gate__max_kl": -1.0},
            "sft.epochs is 0, but input should be greater than or equal to 1: change it (and 1 more)",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(change, sentence):
    assert complaint(changed(**change)) == f"params.yaml: {sentence}"


@pytest.mark.parametrize("section", ["runtime", "validate", "ppo", "registry"])
def test_a_missing_key_is_named(section):
    settings = shipped()
    key = next(iter(settings[section]))
    del settings[section][key]
    assert complaint(settings) == f"params.yaml: {section}.{key} is missing: add it"


def test_a_missing_section_is_named():
    settings = shipped()
    del settings["gate"]
    assert complaint(settings) == "params.yaml: gate is missing: add it"


def test_a_launcher_starts_with_a_program():
    sentence = "it must start with a program: set a variable by env, as in env NAME=VALUE accelerate launch"
    assert complaint(changed(runtime__launcher="A=1 python -m")) == f"params.yaml: runtime.launcher: {sentence}"
    assert parse_params(changed(runtime__launcher="env A=1 python -m")).runtime.launcher == "env A=1 python -m"


@pytest.mark.parametrize(
    "url",
    ["localhost:8000/v1", "ftp://a/v1", "http://me:hush@a/v1", "http://a/v1?key=hush", "http://a/v1 hush", "http://"],
)
def test_the_llm_judges_address_holds_no_secret_and_none_is_shown(url):
    message = complaint(changed(evaluate__llm_judge={"url": url, "model": "held_out_reward", "prompts": None}))
    assert message.startswith(
        "params.yaml: evaluate.llm_judge.url: it must begin with http:// or https:// and have neither"
    )
    assert "hush" not in message


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("messages", "x", "messages has its own meaning in a chat template: take it out"),
        ("tools", [], "tools has its own meaning"),
        ("add_generation_prompt", True, "add_generation_prompt has its own meaning"),
        ("eos_token", "x", "eos_token has its own meaning"),
        ("if", 1, "if has its own meaning"),
        ("set", 1, "set has its own meaning"),
        ("enable-thinking", False, "'enable-thinking' is no name of a variable: give letters, digits and _"),
        ("größe", 1, "is no name of a variable"),
        ("x", None, "x is neither text, number, true, false nor a list of them: change it"),
        ("x", {"a": 1}, "x is neither"),
        ("x", [["a"]], "x is neither"),
        ("x", float("nan"), "nan is no number"),
    ],
)
def test_what_a_template_cannot_be_given_is_refused(name: str, value: object, message: str) -> None:
    assert parse_params(changed(base__template_arguments={"x": ["a", 1, 1.5, True]})).base.template_arguments["x"][2]
    with pytest.raises(InputError, match=r"base\.template_arguments") as error:
        parse_params(changed(base__template_arguments={name: value}))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("markers", "message"),
    [
        ({"start": "<t>", "end": "<t>"}, "start and end must differ"),
        ({"start": "a", "end": "ab"}, "neither may hold the other"),
        ({"start": " <t>", "end": "</t>"}, "has white space around it"),
        ({"start": "", "end": "</t>"}, "reasoning.start"),
        ({"start": "<t>"}, "reasoning.end"),
    ],
)
def test_markers_of_reasoning_that_cannot_be_distinguished_are_refused(markers: dict[str, str], message: str) -> None:
    assert parse_params(changed(base__reasoning=None)).base.reasoning is None
    with pytest.raises(InputError) as error:
        parse_params(changed(base__reasoning=markers))
    assert message in str(error.value)


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "https://api.example.org/v1/"])
def test_an_llm_judge_may_be_set(url):
    settings = parse_params(
        changed(evaluate__llm_judge={"url": url, "model": "held_out_reward", "prompts": 9})
    ).evaluate.llm_judge
    assert settings == LlmJudge(url=url, model="held_out_reward", prompts=9)


def test_a_section_that_was_taken_apart_is_refused_with_the_new_place() -> None:
    message = complaint(changed(prepare__example={"demonstrations": 9}))
    assert message == (
        "params.yaml: prepare.example is no section any more: write its settings under prepare.demonstrations.options, "
        "prepare.preferences.options and prepare.prompts.options"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": {"a": [float("nan")]}}, "nan is no number that a setting can have: change it"),
        ({"rows": [-0.0]}, "-0.0 is no number that a setting can have: write 0.0"),
        ({"rows": {1: "a"}}, "the key 1 is no text: put it in quotes"),
        (
            {"rows": [date(2026, 1, 2)]},
            "datetime.date(2026, 1, 2) is neither text, number, list nor mapping: put it in quotes",
        ),
        ({"a\x85": 1}, "it has the character"),
    ],
)
def test_options_of_a_function_are_plain_at_any_depth(options: object, message: str) -> None:
    key = "prepare.prompts.options"
    assert complaint(changed(prepare__prompts__options=options)).startswith(f"params.yaml: {key}: {message}")


@pytest.mark.parametrize("old", RENAMED)
def test_a_key_under_its_old_name_is_refused_with_the_new_one(old: str) -> None:
    *sections, key = old.split(".")
    *new_sections, new_key = RENAMED[old].split(".")
    settings = shipped()
    place, new_place = settings, settings
    for section in sections:
        place = place[section]
    for section in new_sections:
        new_place = new_place[section]
    place[key] = new_place.pop(new_key)
    assert complaint(settings) == f"params.yaml: {old} is now called {RENAMED[old]}: rename it"


@pytest.mark.parametrize(("key", "old"), [(key, old) for key, values in RENAMED_VALUES.items() for old in values])
def test_a_value_under_its_old_name_is_refused_with_the_new_one(key: str, old: str) -> None:
    new = RENAMED_VALUES[key][old]
    message = complaint(changed(**{key.replace(".", "__"): old}))
    assert message == f"params.yaml: {key}: the value {old} is now called {new}: change it"
