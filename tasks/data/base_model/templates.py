"""The base model's chat template: which one it is, without a clock, and tried before anything is trained on it."""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateError

from tasks.common.errors import InputError
from tasks.data.encoding.rendering import EndlessError, RefusedError, Render, in_short, is_written, rendering
from tasks.data.records import Message

if TYPE_CHECKING:  # transformers costs seconds to import
    from transformers import PreTrainedTokenizerBase

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
# Tools, calls and results stand in the marks of Hermes and Qwen; without them every byte is as in plain ChatML.
CHATML = (
    "{% if tools %}<|im_start|>system\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "You may call these functions:\n<tools>\n{% for tool in tools %}{{ (tool | tojson) + '\n' }}{% endfor %}</tools>\n"
    "To call one, write its name and its arguments as JSON:\n"
    '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for message in messages %}{% if not (tools and loop.first and message.role == 'system') %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'tool' %}{{ '<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{% else %}{{ message.content }}{% endif %}"
    "{% for call in message.tool_calls or [] %}{% if message.content or not loop.first %}{{ '\n' }}{% endif %}"
    '<tool_call>\n{"name": {{ call.function.name | tojson }}, '
    '"arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "plain": "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}",
}

# The one clock that transformers gives to templates, and what is put before a template that asks it: the name then
# means Thursday, 1 January 2026, 0:00, for everybody who loads the model, and so do all its aliases.
CLOCK = "strftime_now"
FIRST_OF_JANUARY = {
    **{"%Y": "2026", "%y": "26", "%m": "01", "%-m": "1", "%B": "January", "%b": "Jan", "%h": "Jan"},
    **{"%d": "01", "%-d": "1", "%e": " 1", "%j": "001", "%A": "Thursday", "%a": "Thu", "%w": "4", "%u": "4"},
    **{"%H": "00", "%-H": "0", "%I": "12", "%-I": "12", "%M": "00", "%-M": "0", "%S": "00", "%-S": "0", "%p": "AM"},
    **{"%F": "2026-01-01", "%T": "00:00:00", "%R": "00:00", "%D": "01/01/26", "%f": "000000", "%s": "1767225600"},
    **{"%x": "01/01/26", "%X": "00:00:00", "%c": "Thu Jan  1 00:00:00 2026", "%C": "20", "%G": "2026", "%V": "01"},
    **{"%U": "00", "%W": "00", "%z": "", "%Z": ""},
}
FROZEN_CLOCK = (
    "{% macro strftime_now(format) %}{% set result = namespace(text=format) %}"
    f"{{% for code, meaning in {json.dumps(FIRST_OF_JANUARY)}.items() %}}"
    "{% set result.text = result.text | replace(code, meaning) %}{% endfor %}{{ result.text }}{% endmacro %}\n"
)
# Behind each line that gives a template argument its value, in front of the template.
BOUND = "{# base.template_arguments #}\n"
FOLDER = Path("infra/templates")  # a dependency of the stage: DVC would not see a file change anywhere else
MOST_BYTES = 2**20  # of a template's file
CURE = "fix it or set base.chat_template"
# Renderings of a template that must all be the same, each with other random numbers.
RENDERINGS = 8
ADDRESS = re.compile(r" at 0x[0-9a-f]+>")  # how Python writes an object: other in every process

SYSTEM = Message(role="system", content="Answer in one line.")
ASKED = [Message(role="user", content="One question.")]
TURNS = [
    Message(role="user", content="First question."),
    Message(role="assistant", content="First answer."),
    Message(role="user", content="Second question."),
]
# Conversations of every form that data may have; the first is the one that no model can do without.
PLAIN = "one question"
FORMS = {
    PLAIN: ASKED,
    "a system text": [SYSTEM, *ASKED],
    "earlier turns": TURNS,
    "a system text with earlier turns": [SYSTEM, *TURNS],
    "thinking in earlier turns": [
        TURNS[0],
        Message(role="assistant", content="<think>\nFirst thought.\n</think>\n\nFirst answer."),
        TURNS[2],
    ],
    "a greeting of the assistant": [Message(role="assistant", content="How can I help?"), *ASKED],
    "two questions in a row": [*ASKED, Message(role="user", content="Another question.")],
    "quotes, braces, line breaks and accents": [Message(role="user", content='"It\'s" {{ 1 }} {% x %}\n\\ Größe?')],
}


def choose_template(
    tokenizer: "PreTrainedTokenizerBase", choice: str | None, arguments: Mapping[str, Any], name: str
) -> None:
    """Give a tokenizer the chosen chat template, which takes the place of its own; take the clock out, set arguments.

    Args:
        tokenizer: changed in place.
        choice: chatml, plain or a Jinja file in FOLDER; None: its own.
        arguments: values of variables that the template reads, for everybody who renders it from now on.
        name: what people call the model.

    Raises:
        InputError: there is none, it is no Jinja, the vocabulary lacks what it writes, or it reads no variable of an
            argument's name.
    """
    if choice is not None:
        tokenizer.chat_template = _read_template(tokenizer, choice, name)
    own = tokenizer.chat_template
    if not own:
        raise InputError(f"{name} has no chat template: set base.chat_template: chatml, plain or a file in {FOLDER}")
    if not all(isinstance(text, str) for text in (own.values() if isinstance(own, dict) else [own])):
        raise InputError(f"{name} has a chat template that is no text: fix it or set base.chat_template")
    if isinstance(own, dict) and "default" not in own:
        raise InputError(
            f"{name} has the chat templates {', '.join(own)}, but none called default: set base.chat_template"
        )
    try:
        _check_arguments(list(own.values()) if isinstance(own, dict) else [own], arguments, name)
        fixed = (
            {key: _fixed(text, arguments) for key, text in own.items()}
            if isinstance(own, dict)
            else _fixed(own, arguments)
        )
    except TemplateError as error:
        raise InputError(f"{name}: its chat template is no Jinja ({in_short(error)}): {CURE}") from None
    tokenizer.chat_template = fixed


def try_template(tokenizer: "PreTrainedTokenizerBase", name: str) -> list[str]:
    """Try the chat template on conversations of every form.

    Returns:
        Forms of conversations that it refuses or of which it loses a text, as parts of a sentence. Rows of such a form
        would have to go to quarantine, if there are some.

    Raises:
        InputError: it refuses a plain question, loses it or its answer, writes another beginning once there is an
            answer, does not come to an end, or does not write the same each time.
    """
    state = random.getstate()
    try:
        with rendering(tokenizer) as render:
            _try_answer(render, name)
            return [trouble for form in FORMS for trouble in _troubles(render, form, name)]
    finally:
        random.setstate(state)


def _read_template(tokenizer: "PreTrainedTokenizerBase", choice: str, name: str) -> str:
    if choice == "chatml" and not {TURN_START, TURN_END} <= tokenizer.get_vocab().keys():
        raise InputError(f"{name}: its vocabulary lacks {TURN_START}: set base.chat_template: plain")
    if choice in TEMPLATES:
        return _beginning(tokenizer) + TEMPLATES[choice]
    try:
        file = Path(choice)
        if file.is_file() and file.stat().st_size <= MOST_BYTES:  # no pipe, which would be waited for
            if not file.resolve().is_relative_to(FOLDER.resolve()):
                raise InputError(
                    f"base.chat_template {choice} lies outside {FOLDER}, where DVC would not follow it: put it there"
                )
            return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        pass
    raise InputError(
        f"base.chat_template {choice} is no text file of at most a megabyte: give chatml, plain or a Jinja file in"
        f" {FOLDER}"
    )


def _beginning(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What a tokenizer puts before every text, such as the beginning-of-sequence token, for a template to write.

    Rendered text is encoded without special tokens of the tokenizer's own, by us as by transformers and vLLM.
    """
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(takewhile(special.__contains__, tokenizer("x")["input_ids"])))
    return "".join("{{ bos_token }}" if token == tokenizer.bos_token else token for token in tokens)


def _fixed(template: str, arguments: Mapping[str, Any]) -> str:
    """A template that writes the same whenever and by whomever it is rendered: its clock and arguments are set."""
    text = template.removeprefix(FROZEN_CLOCK)
    clock = FROZEN_CLOCK if text != template or CLOCK in _names(text) else ""
    return clock + _bound(text, arguments)


def _names(template: str) -> set[str]:
    return {value for _, kind, value in Environment(autoescape=False).lex(template) if kind == "name"}


def _check_arguments(templates: Sequence[str], arguments: Mapping[str, Any], name: str) -> None:
    for argument in arguments:
        if not any(argument in _names(template) for template in templates):
            raise InputError(
                f"{name}: its chat template does not read {argument} (base.template_arguments): fix the name or take"
                " it out"
            )


def _bound(template: str, arguments: Mapping[str, Any]) -> str:
    """Put the values in front of a template, in the place of those that an earlier `base` put there.

    In its text they come with every copy of the model, and no caller can forget them or give others.
    """
    lines = {argument: f"{{% set {argument} = {_literal(value)} %}}{BOUND}" for argument, value in arguments.items()}
    while BOUND in template and template.startswith("{% set "):
        line, template = template.split(BOUND, 1)
        lines.setdefault(line.split()[2], line + BOUND)
    return "".join(lines[argument] for argument in sorted(lines)) + template


def _literal(value: Any) -> str:  # noqa: ANN401 - text, number, boolean, or a list of them
    # Jinja reads JSON, except for characters written as two escapes: these stay as they are.
    return json.dumps(value, ensure_ascii=False)


def _try_answer(render: Render, name: str) -> None:
    question, answer = ASKED[0]["content"], "One answer."
    try:
        prompt = _read(render, ASKED, name)
        whole = render([*ASKED, Message(role="assistant", content=answer)], generation_prompt=False)
    except RefusedError as error:
        raise InputError(f"{name}: its chat template {error.reason}: {CURE}") from None
    if question not in prompt or not whole.startswith(prompt) or answer not in whole[len(prompt) :]:
        raise InputError(f"{name}: its chat template does not write the answer behind the prompt: {CURE}")


def _troubles(render: Render, form: str, name: str) -> Iterator[str]:
    try:
        written = _read(render, FORMS[form], name)
    except EndlessError as error:
        raise InputError(f"{name}: its chat template {error.reason}: {CURE}") from None
    except RefusedError:
        yield f"refuses {form}"
        return
    if not all(is_written(message["content"], written) for message in FORMS[form]):
        yield f"loses {form}"


def _read(render: Render, messages: Sequence[Message], name: str) -> str:
    """What a template writes, the same at every rendering."""
    written = set()
    for seed in range(RENDERINGS):
        random.seed(seed)
        written.add(render(messages, generation_prompt=True))
    if len(written) > 1 or any(map(ADDRESS.search, written)):
        raise InputError(f"{name}: its chat template does not write a conversation the same way each time: {CURE}")
    return written.pop()
