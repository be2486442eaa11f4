"""What a chat template leaves out of a conversation, by name."""

from typing import Any

import pytest

from tasks.data.checks.lost import Reader
from tasks.data.encoding.rendering import rendering
from tasks.data.records import Message
from tests.conftest import CHATML, make_tokenizer

SILENT = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
FORGETFUL = "{% if messages | length > 2 %}{% set messages = messages[-1:] %}{% endif %}"
THOUGHTLESS = CHATML.replace("{{ message.content }}", "{{ message.content.split('</think>')[-1] | trim }}")
ESCAPING = CHATML.replace("{{ message.content }}", "{{ message.content | tojson }}")
# The system text stands before the last question, as in Mistral's templates.
MOVING = (
    "{% for message in messages if message.role != 'system' %}[{{ message.role }}]"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}"
    "{{ message.content }}{% endfor %}"
)
CUTTING = CHATML.replace("{{ message.content }}", "{{ message.content[:20] }}")
THOUGHT = "assistant: <think>\nhm\n</think>\n\ntwo"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.mark.parametrize(
    ("template", "turns", "losses"),
    [
        (CHATML, ["system: be kind", "user: hi", THOUGHT, "user: three"], {}),
        (SILENT + CHATML, ["system: be kind", "user: hi"], {"lost_system": "the system text"}),
        (SILENT + CHATML, ["system:  ", "user: hi"], {}),  # a blank one is none
        # Its words also stand in the question: that the system text is dropped is known from the roles.
        (SILENT + CHATML, ["system: be kind", "user: hi, be kind"], {"lost_system": "the system text"}),
        (MOVING, ["system: be kind", "user: one", "assistant: two", "user: three"], {}),
        (
            FORGETFUL + CHATML,
            ["user: one", "assistant: one", "user: one"],
            {"lost_turns": "turn 1 (user) or a part of it"},
        ),
        (FORGETFUL + CHATML, ["user: one"], {}),
        (THOUGHTLESS, ["user: one", THOUGHT, "user: three"], {"lost_thinking": "the thinking in turn 2 (assistant)"}),
        (
            THOUGHTLESS,
            ["user: one", "assistant: hm</think>two", "user: three"],
            {"lost_thinking": "the thinking in turn 2 (assistant)"},
        ),
        (THOUGHTLESS, ["user: what is 1 < 2 </thin>?", "assistant: two", "user: three"], {}),
        (CUTTING, ["user: twenty characters and more"], {"lost_turns": "turn 1 (user) or a part of it"}),
        (CUTTING, ["user: twenty characters"], {}),
        (CHATML, ['user: "it\'s" {{ a }} {% b %} é\n\\'], {}),
        (ESCAPING, ['user: "it\'s" {{ a }} {% b %} é\n\\'], {}),
        # It refuses whatever has the markers of the roles, but wrote the row.
        ("{% if 'mark' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + CHATML, ["user: one"], {}),
    ],
)
def test_what_is_lost_is_named(tokenizer: Any, template: str, turns: list[str], losses: dict[str, str]) -> None:
    tokenizer.chat_template = template
    parts = (turn.partition(": ") for turn in turns)
    prompt = [Message(role=role, content=content) for role, _, content in parts]
    with rendering(tokenizer) as render:
        written = render(prompt, generation_prompt=True)
    expected = {check: f"the chat template leaves out {what}" for check, what in losses.items()}
    assert Reader(tokenizer).losses(prompt, written) == expected
