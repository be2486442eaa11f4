"""The base model's chat template: which one wins, that it knows no date, and what it is tried on."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.data.base_model.templates import FIRST_OF_JANUARY, FROZEN_CLOCK, TEMPLATES, choose_template, try_template
from tasks.data.encoding.tokens import encode, encode_prompt
from tests.conftest import CHATML, make_tokenizer

STORIES = Path(__file__).parents[3] / "shared/models/stories260k"
ASKED: Any = [{"role": "user", "content": "send it"}]
DATED = "{{ strftime_now('%d %b %Y') }}\n"
needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="../shared/models/stories260k is absent")


@pytest.fixture(scope="module")
def shared() -> Any:
    return make_tokenizer()


@pytest.fixture
def tokenizer(shared: Any) -> Any:
    shared.chat_template = CHATML
    return shared


def set_clock(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    """Stop the clock that templates are given."""

    class Stopped(datetime):
        @classmethod
        def now(cls, _zone: object = None) -> datetime:  # type: ignore[override]
            return moment

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Stopped)


# --- Which one


@pytest.mark.parametrize("own", [None, CHATML, {"default": CHATML, "tool_use": DATED}])
@pytest.mark.parametrize("choice", ["chatml", "plain"])
def test_the_setting_takes_the_place_of_whatever_the_model_brings(tokenizer: Any, own: Any, choice: str) -> None:
    tokenizer.chat_template = own
    choose_template(tokenizer, choice, {}, "given")
    assert tokenizer.chat_template == TEMPLATES[choice]


def test_without_a_setting_the_models_own_stays_as_it_is(tokenizer: Any) -> None:
    choose_template(tokenizer, None, {}, "given")
    assert tokenizer.chat_template == CHATML


@pytest.mark.parametrize("own", [None, "", {}])
def test_with_neither_the_sentence_names_the_setting(tokenizer: Any, own: Any) -> None:
    tokenizer.chat_template = own
    with pytest.raises(
        InputError, match=r"^given has no chat template: set base.chat_template: chatml, plain or a file"
    ):
        choose_template(tokenizer, None, {}, "given")


def test_of_several_templates_one_must_be_the_default(tokenizer: Any) -> None:
    tokenizer.chat_template = {"rag": CHATML, "tool_use": CHATML}
    with pytest.raises(InputError, match=r"chat templates rag, tool_use, but none called default: set base.chat_templ"):
        choose_template(tokenizer, None, {}, "given")


@pytest.mark.parametrize("own", [5, ["x"], {"default": None}, {"default": CHATML, "rag": 5}])
def test_what_is_no_text_is_refused(tokenizer: Any, own: Any) -> None:
    tokenizer.chat_template = own
    with pytest.raises(
        InputError, match=r"^given has a chat template that is no text: fix it or set base.chat_template"
    ):
        choose_template(tokenizer, None, {}, "given")


def test_a_file_of_ones_own_is_read_where_dvc_follows_it(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside, outside = Path("infra/templates/mine.jinja"), Path("mine.jinja")
    inside.parent.mkdir(parents=True)
    for file in (inside, outside):
        file.write_text(TEMPLATES["plain"].replace("Assistant", "Agent"))
    for path in (inside, inside.absolute()):
        choose_template(tokenizer, str(path), {}, "given")
        assert tokenizer.chat_template == inside.read_text()
    Path("infra/templates/link.jinja").symlink_to(outside.absolute())
    for path in (outside, Path("infra/templates/link.jinja")):
        with pytest.raises(InputError, match=r"lies outside infra/templates, where DVC would not follow it: put it"):
            choose_template(tokenizer, str(path), {}, "given")


@pytest.mark.parametrize("name", ["missing", ".", "pipe", "large", "latin", "a\0b", "x" * 300])
def test_a_file_that_is_no_template_is_refused(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import os

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.data.base_model.templates.FOLDER", tmp_path)
    os.mkfifo("pipe")
    Path("large").write_bytes(b"x" * (2**20 + 1))
    Path("latin").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(InputError, match="is no text file of at most a megabyte: give chatml, plain or a Jinja file"):
        choose_template(tokenizer, name, {}, "given")


def test_chatml_needs_its_tokens() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"word": 0}, unk_token="word")))
    with pytest.raises(InputError, match=r"lacks <\|im_start\|>: set base.chat_template: plain"):
        choose_template(words, "chatml", {}, "given")


def test_what_is_no_jinja_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages }"
    with pytest.raises(
        InputError, match=r"^given: its chat template is no Jinja \(.*\): fix it or set base.chat_template"
    ):
        choose_template(tokenizer, None, {}, "given")


# --- Arguments

THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize("first", ["", "\n", FROZEN_CLOCK + DATED])
def test_users_who_load_the_saved_folder_render_with_the_arguments_and_nobody_can_give_others(
    tokenizer: Any, tmp_path: Path, first: str, in_list: bool
) -> None:
    from transformers import AutoTokenizer

    whole = first + THINKING
    tokenizer.chat_template = whole
    asked = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert asked.endswith("</think>\n\n")
    tokenizer.chat_template = {"default": whole, "tool_use": whole} if in_list else whole
    choose_template(tokenizer, None, {"enable_thinking": False}, "given")
    assert try_template(tokenizer, "given") == []
    tokenizer.save_pretrained(tmp_path)
    others = AutoTokenizer.from_pretrained(tmp_path)
    for given in ({}, {"enable_thinking": True}, {"chat_template": "tool_use"} if in_list else {}):
        assert others.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True, **given) == asked
    assert tokenizer.decode(encode_prompt(others, ASKED)) == tokenizer.decode(
        tokenizer(asked, add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize(
    "value",
    [
        *("26 Jul 2026", "", "\"'{{ x }} %} {# \\ \n\r\t\x1f \u2028 Größe \N{GRINNING FACE}"),
        *(True, False, 0, -3, 2**53, 1.5, -1e-05, 1e15, ["low", 1, True], []),
    ],
)
def test_every_value_arrives_as_it_is(tokenizer: Any, value: Any) -> None:
    tokenizer.chat_template = "{{ x | tojson }}{% macro inner() %}{{ x | tojson }}{% endmacro %}|{{ inner() }}"
    asked = tokenizer.apply_chat_template(ASKED, tokenize=False, x=value).split("|")[0]
    choose_template(tokenizer, None, {"x": value}, "given")
    assert tokenizer.apply_chat_template(ASKED, tokenize=False) == f"{asked}|{asked}"


def test_a_later_value_takes_the_place_of_one_that_the_model_came_with(tokenizer: Any) -> None:
    own = "{{ a }} {{ b }} {{ strftime_now('%Y') }} "
    tokenizer.chat_template = own
    choose_template(tokenizer, None, {"a": "one", "b": "two"}, "given")
    choose_template(tokenizer, None, {"a": 1}, "given")
    assert tokenizer.apply_chat_template(ASKED, tokenize=False) == "1 two 2026 "
    again = tokenizer.chat_template
    choose_template(tokenizer, None, {}, "given")
    assert tokenizer.chat_template == again
    tokenizer.chat_template = own
    choose_template(tokenizer, None, {"b": "two", "a": 1}, "given")
    assert tokenizer.chat_template == again


def test_an_argument_that_the_template_does_not_read_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"does not read enable_thinkin \(base.template_arguments\): fix the name"):
        choose_template(tokenizer, None, {"enable_thinkin": False}, "given")


# --- The clock


@pytest.mark.parametrize(
    ("template", "date"),
    [
        (DATED, "01 Jan 2026\n"),
        ("\n" + DATED, "\n01 Jan 2026\n"),  # the first line break is the template's own, and stays
        ("{% set now = strftime_now %}{% set ns = namespace(f=now) %}{{ ns.f(format='%Y-%m-%d') }} ", "2026-01-01 "),
        (
            "{% if strftime_now is defined %}{{ strftime_now('%B %-d, %A') | upper }}{% endif %} ",
            "JANUARY 1, THURSDAY ",
        ),
        ("{% macro today() %}{{ strftime_now('%H:%M:%S') }}{% endmacro %}{{ today() }} ", "00:00:00 "),
        ("{% for m in messages[:1] %}{{ strftime_now('%y') | int + 1 }} {% endfor %}", "27 "),
    ],
)
@pytest.mark.parametrize("in_list", [False, True])
def test_a_template_that_asks_for_the_time_gets_the_same_at_every_reading(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, date: str, in_list: bool
) -> None:
    from transformers import AutoTokenizer

    whole = template + CHATML
    tokenizer.chat_template = {"default": whole, "tool_use": whole} if in_list else whole
    choose_template(tokenizer, None, {}, "given")
    assert try_template(tokenizer, "given") == []
    tokenizer.save_pretrained(tmp_path)
    for moment in (datetime(1999, 12, 31, 23, 59), datetime(2031, 5, 6)):
        set_clock(monkeypatch, moment)
        others = AutoTokenizer.from_pretrained(tmp_path)  # as users who load the saved folder get it
        for each in (tokenizer, others):
            text = each.apply_chat_template(ASKED, tokenize=False)
            assert text == f"{date}<|im_start|>user\nsend it<|im_end|>\n"
        if in_list:
            assert others.apply_chat_template(ASKED, chat_template="tool_use", tokenize=False) == text


def test_a_template_whose_clock_stands_already_stays_as_it_is(tokenizer: Any) -> None:
    tokenizer.chat_template = FROZEN_CLOCK + DATED + CHATML
    choose_template(tokenizer, None, {}, "given")
    assert tokenizer.chat_template == FROZEN_CLOCK + DATED + CHATML


def test_the_frozen_clock_says_what_a_clock_would() -> None:
    moment = datetime(2026, 1, 1)
    local = {"%c", "%x", "%X", "%s"}  # as the machine's language and time zone have it
    formatted = {code: moment.strftime(code) for code in FIRST_OF_JANUARY if code not in local}
    assert formatted == {code: meaning for code, meaning in FIRST_OF_JANUARY.items() if code not in local}


@pytest.mark.parametrize(
    "moody", ["{{ ['a', 'b'] | random }}", "{{ lipsum() }}", "{{ messages | map('upper') }}", "{{ raise_exception }}"]
)
def test_a_template_that_writes_something_else_each_time_is_refused(tokenizer: Any, moody: str) -> None:
    import random

    tokenizer.chat_template = moody + CHATML
    state = random.getstate()
    with pytest.raises(InputError, match="does not write a conversation the same way each time: fix it or set"):
        try_template(tokenizer, "given")
    assert random.getstate() == state


# --- What it is tried on


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('roles must\nalternate') }}",
            "refuses the conversation .roles must alternate.: fix it or",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
            "does not write",
        ),
        ("{{ messages[0].content }}", "does not write the answer behind the prompt: fix it or set base.chat_template"),
        ("constant", "does not write the answer behind the prompt"),
        (
            "{% for m in messages %}" + CHATML + "{{ [0] * 10 ** 10 }}{% endfor %}",
            "takes over 1 GiB of memory: fix it or",
        ),
    ],
)
def test_a_template_must_write_a_question_and_behind_it_the_answer(tokenizer: Any, template: str, message: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=f"^given: its chat template {message}"):
        try_template(tokenizer, "given")


@pytest.mark.parametrize(
    ("before", "faults"),
    [
        ("", []),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}",
            ["refuses a system text", "refuses a system text with earlier turns"],
        ),
        (
            "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}",
            ["loses a system text", "loses a system text with earlier turns"],
        ),
        (
            "{% if messages | length > 2 %}{% set messages = messages[-1:] %}{% endif %}",
            ["loses earlier turns", "loses a system text with earlier turns", "loses thinking in earlier turns"],
        ),
        (
            "{% if messages[0].role == 'assistant' %}{{ raise_exception('no') }}{% endif %}",
            ["refuses a greeting of the assistant"],
        ),
        (
            "{% if '{' in messages[0].content %}{{ raise_exception('no') }}{% endif %}",
            ["refuses quotes, braces, line breaks and accents"],
        ),
    ],
)
def test_forms_that_rows_may_have_are_tried_and_reported(tokenizer: Any, before: str, faults: list[str]) -> None:
    tokenizer.chat_template = before + CHATML
    assert try_template(tokenizer, "given") == faults


def test_thinking_that_is_taken_out_of_earlier_turns_is_reported(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML.replace("{{ message.content }}", "{{ message.content.split('</think>')[-1] }}")
    assert try_template(tokenizer, "given") == ["loses thinking in earlier turns"]


def test_a_form_on_which_a_template_never_ends_is_no_matter_of_rows(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ 'x' * 10 ** 11 }}{% endif %}" + CHATML
    with pytest.raises(InputError, match=r"^given: its chat template takes over 1 GiB of memory: fix it"):
        try_template(tokenizer, "given")


# --- The beginning of a sequence


def first_of(kind: str) -> Any:
    """A tokenizer that puts <s> before every text, or one that puts nothing there."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(STORIES) if kind == "llama" else make_tokenizer()


@needs_stories
@pytest.mark.parametrize("choice", ["chatml", "plain"])
@pytest.mark.parametrize("kind", ["llama", "without"])
def test_our_templates_begin_as_the_tokenizer_does(tmp_path: Path, kind: str, choice: str) -> None:
    from transformers import AutoTokenizer

    from tasks.registry.export.trueline_model import token_ids

    tokenizer = first_of(kind)
    if kind == "llama":
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    choose_template(tokenizer, choice, {}, "given")
    text = tokenizer.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True)
    without = text.removeprefix("<s>")
    expected = tokenizer(without)["input_ids"]  # by the tokenizer's own habit
    beginning = [tokenizer.bos_token_id] if kind == "llama" else []

    assert expected[: len(beginning)] == beginning
    assert encode_prompt(tokenizer, ASKED) == expected
    assert expected.count(tokenizer.bos_token_id) == len(beginning)
    tokenizer.save_pretrained(tmp_path)
    others: Any = AutoTokenizer.from_pretrained(tmp_path)
    given = others.apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"]  # as transformers and vLLM do
    assert given == expected
    row = encode(others, ASKED, "yes")
    assert row.prompt == expected
    assert token_ids(others, [*ASKED, {"role": "assistant", "content": "yes"}]) == (row.prompt, row.completion)
