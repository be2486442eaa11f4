"""Tools, calls and results in chat templates: exact text, exact mask, and what a template leaves out."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.data.base_model.templates import CHATML, TEMPLATES
from tasks.data.checks.lengths import measure
from tasks.data.checks.lost import Reader
from tasks.data.checks.schema import inspect
from tasks.data.checks.truncation import truncated
from tasks.data.encoding.encoded import (
    encoded_demonstrations,
    encoded_preferences,
    encoded_prompts,
    encoded_ratings,
)
from tasks.data.encoding.tokens import Encoded, EncodedPair, Text, encode, encode_prompt, encode_texts
from tasks.data.records import Answer, Demonstration, Message, Preference, Prompt, Rating, write_records
from tasks.data.shapes.conversations import answered_turns
from tasks.data.shapes.messages import as_messages
from tasks.data.shapes.tools import as_tools
from tasks.registry.export.trueline_model import token_ids
from tests.conftest import CHATML as PLAIN_CHATML
from tests.conftest import make_tokenizer
from tests.data.test_conversations import assistant, user
from tests.data.test_tool_shapes import CALLING, GLAIVE, RESULT, TOOLS, call_of, with_tools

STORIES = GLAIVE.parents[2] / "models/stories260k"
SYSTEM = Message(role="system", content="Be kind.")
# ChatML as Qwen 2.5 has it: no newline behind the role of a call, results in a turn of the user, several in one.
QWEN = (
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n<tools>' }}{%- for tool in tools %}"
    "{{- '\n' }}{{- tool | tojson }}"
    "{%- endfor %}{{- '\n</tools><|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role in ['user', 'system'] or (message.role == 'assistant' and not message.tool_calls) %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>' + message.role }}"
    "{%- if message.content %}{{- '\n' + message.content }}{%- endif %}"
    "{%- for tool_call in message.tool_calls %}"
    '{{- \'\n<tool_call>\n{"name": "\' }}{{- tool_call.function.name }}{{- \'", "arguments": \' }}'
    "{{- tool_call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}"
    "{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# As Llama 3.1: a call is bare JSON, and the text beside it is not written; the result is of the role ipython.
LLAMA = (
    "{% for message in messages %}{% if loop.first and tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>"
    "{% endif %}<|im_start|>{{ 'ipython' if message.role == 'tool' else message.role }}\n"
    "{% if message.tool_calls %}{% set call = message.tool_calls[0].function %}"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}'
    "{% else %}{{ message.content }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
CONVERSATION = [user("u"), CALLING, RESULT, assistant("a"), user("v"), assistant("b")]


def decoded(tokenizer: Any, row: Encoded) -> tuple[str, str]:
    """The text of prompt and completion, special tokens too."""
    prompt, completion = (tokenizer.decode(ids, skip_special_tokens=False) for ids in row)
    return prompt, completion


def test_the_shipped_chatml_writes_tools_calls_and_results():
    tokenizer = make_tokenizer(CHATML)
    offered = (
        "You may call these functions:\n<tools>\n"
        '{"type": "function", "function": {"name": "weather", "description": "The weather.", '
        '"parameters": {"type": "object", "properties": {}}}}\n</tools>\n'
        "To call one, write its name and its arguments as JSON:\n"
        '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call><|im_end|>\n'
    )
    asked = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    first = encode(tokenizer, with_tools(user("u")), CALLING)
    assert decoded(tokenizer, first) == (f"<|im_start|>system\n{offered}{asked}", f"{TEXT}<|im_end|>")
    second = encode(tokenizer, with_tools(SYSTEM, *CONVERSATION[:3]), "a")
    assert decoded(tokenizer, second) == (
        f"<|im_start|>system\nBe kind.\n\n{offered}{asked}{TEXT}<|im_end|>\n"
        "<|im_start|>tool\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        "a<|im_end|>",
    )
    both: Any = assistant("I look.") | {"tool_calls": [*CALLING["tool_calls"], call_of({"b": [1, True]}, "f")]}
    third = encode(tokenizer, [user("u")], both)
    assert decoded(tokenizer, third) == (
        asked,
        f'I look.\n{TEXT}\n<tool_call>\n{{"name": "f", "arguments": {{"b": [1, true]}}}}\n</tool_call><|im_end|>',
    )


@pytest.mark.parametrize("asks", [False, True])
def test_rows_without_tools_are_as_in_plain_chatml(asks: bool):
    conversation = [SYSTEM, user(" {{ x }}\n\n"), assistant("<a>\n"), user(""), assistant("")]
    for start in range(4):
        some = conversation[start:]
        texts = [
            make_tokenizer(template).apply_chat_template(some, tokenize=False, add_generation_prompt=asks)
            for template in (CHATML, PLAIN_CHATML)
        ]
        assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("template", "call", "result"),
    [
        (QWEN, f"{TEXT}<|im_end|>", "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"),
        (
            LLAMA,
            '{"name": "weather", "parameters": {"city": "Rome"}}<|im_end|>',
            "<|im_start|>ipython\nsunny<|im_end|>",
        ),
    ],
)
def test_templates_of_families_have_calls_in_their_own_form(template: str, call: str, result: str):
    tokenizer = make_tokenizer(template)
    first = encode(tokenizer, with_tools(user("u")), CALLING)
    prompt, completion = decoded(tokenizer, first)
    assert completion == call
    assert json.dumps(TOOLS[0]) in prompt
    after, answer = decoded(tokenizer, encode(tokenizer, with_tools(*CONVERSATION[:3]), "a"))
    end = "\n" if template == QWEN else ""
    assert after == f"{prompt}{call}{end}{result}<|im_start|>assistant\n"
    assert answer == "a<|im_end|>"


def generation_template() -> str:
    """The shipped ChatML with the assistant's parts marked as transformers wants them."""
    start = CHATML.index("{% if message.role == 'tool' %}")
    end = CHATML.index("<|im_end|>\n{% endif %}{% endfor %}")
    body, turn = CHATML[start:end], "<|im_end|>"
    marked = (
        f"{{% if message.role == 'assistant' %}}{{% generation %}}{body}{turn}{{% endgeneration %}}"
        f"{{% else %}}{body}{turn}{{% endif %}}{{{{ '\n' }}}}"
    )
    return CHATML[:start] + marked + CHATML[end + len(turn) + 1 :]


def assert_masks_are_those_of_transformers(whole: list[Message], tools: list[dict[str, Any]]) -> int:
    """Compare the loss of every answer with transformers' mask of the whole conversation; count what is learned."""
    tokenizer, marked = make_tokenizer(CHATML), make_tokenizer(generation_template())
    given = marked.apply_chat_template(whole, tools=tools or None, return_assistant_tokens_mask=True, return_dict=True)
    learned = [0] * len(given["input_ids"])
    offered = [{**whole[0], "tools": tools}, *whole[1:]] if tools else whole
    for turn in answered_turns(offered):  # type: ignore[arg-type]
        row = encode(tokenizer, turn.prompt, turn.response)
        assert given["input_ids"][: row.length] == [*row.prompt, *row.completion]
        learned[len(row.prompt) : row.length] = [1] * len(row.completion)
    assert learned == given["assistant_masks"]
    return sum(learned)


def test_the_loss_lies_on_the_assistants_parts_alone():
    learned = assert_masks_are_those_of_transformers(CONVERSATION, TOOLS)
    tokenizer = make_tokenizer(CHATML)
    answers = [TEXT, "a", "b"]  # by hand: each with its end, nothing of the result
    assert learned == sum(len(tokenizer(f"{text}<|im_end|>")["input_ids"]) for text in answers)


@pytest.mark.skipif(not GLAIVE.exists(), reason="../shared/data is not here")
def test_the_masks_of_a_real_file_of_calls():
    for row in json.loads(GLAIVE.read_text(encoding="utf-8")):
        whole = as_messages(row["conversations"], "conversations")
        assert assert_masks_are_those_of_transformers(whole, as_tools(row["tools"]))


def test_a_pair_has_a_call_and_a_text_behind_one_prompt():
    tokenizer = make_tokenizer(CHATML)
    [parts] = encode_texts(tokenizer, [Text(with_tools(user("u")), [CALLING, "no"])])
    assert isinstance(parts, list)
    assert parts == [
        encode_prompt(tokenizer, with_tools(user("u"))),
        *(encode(tokenizer, with_tools(user("u")), answer).completion for answer in (CALLING, "no")),
    ]


def test_what_trainers_read_of_calls_is_what_encode_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tokenizer, prompt = make_tokenizer(CHATML), with_tools(*CONVERSATION[:3])
    place = ("1", "train", "rows.jsonl", 1, prompt)
    write_records(tmp_path, "demonstrations", [Demonstration(*place, CALLING)])  # type: ignore[arg-type]
    write_records(tmp_path, "preferences", [Preference(*place, CALLING, "no")])  # type: ignore[arg-type]
    write_records(tmp_path, "ratings", [Rating(*place, CALLING, True)])  # type: ignore[arg-type]
    write_records(tmp_path, "prompts", [Prompt(*place, [])])  # type: ignore[arg-type]
    call, text = encode(tokenizer, prompt, CALLING), encode(tokenizer, prompt, "no")
    assert list(encoded_demonstrations(tmp_path, "train", tokenizer, None)) == [call]
    assert list(encoded_preferences(tmp_path, "train", tokenizer, None)) == [EncodedPair(call, text)]
    assert list(encoded_ratings(tmp_path, "train", tokenizer, None)) == [call]
    assert list(encoded_prompts(tmp_path, "train", tokenizer, None, 5)) == [call.prompt]


def test_a_template_that_rewrites_a_call_is_refused():
    rewriting = QWEN.replace("{{- '<|im_start|>' + message.role }}", "{{- '<|im_start|>call' }}")
    with pytest.raises(InputError) as error:
        encode(make_tokenizer(rewriting), [user("u")], CALLING)
    assert str(error.value) == (
        "the chat template writes the tool call of the answer elsewhere than behind the prompt: fix the row or choose "
        "another template (base.chat_template)"
    )


def test_a_call_with_the_end_of_sequence_token_is_refused():
    answer: Any = {**CALLING, "tool_calls": [call_of({"city": "Rome<|im_end|>"})]}
    with pytest.raises(InputError, match=r"the answer holds the control token <\|im_end\|>"):
        encode(make_tokenizer(CHATML), [user("u")], answer)


def test_models_with_a_template_for_tools_use_it():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": PLAIN_CHATML, "tool_use": CHATML}
    assert encode_prompt(tokenizer, with_tools(user("u"))) == encode_prompt(
        make_tokenizer(CHATML), with_tools(user("u"))
    )
    assert encode_prompt(tokenizer, [user("u")]) == encode_prompt(make_tokenizer(PLAIN_CHATML), [user("u")])


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [(with_tools(user("u")), CALLING), (with_tools(*CONVERSATION[:3]), "a"), ([user("u")], "<think>x</think>a")],
)
def test_an_exported_model_reads_the_same_tokens(prompt: list[Message], answer: Answer):
    for template in (CHATML, QWEN, LLAMA, THINKING):
        tokenizer = make_tokenizer(template)
        message: Any = assistant(answer) if isinstance(answer, str) else answer
        if template != THINKING or isinstance(answer, str):
            assert token_ids(tokenizer, [*prompt, message]) == tuple(encode(tokenizer, prompt, answer))


THINKING = PLAIN_CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
# As Qwen's thinking models: reasoning is taken apart and written anew, an empty one too.
REWRITTEN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% set parts = message.content.split('</think>') %}"
    "<think>\n{{ parts[0].split('<think>')[-1] | trim if parts | length > 1 else '' }}\n"
    "</think>\n\n{{ parts[-1] | trim }}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
OFF = THINKING.replace("<think>\n{% endif %}", "<think>\n\n</think>\n\n{% endif %}")
UNBROKEN = THINKING.replace("<think>\n{% endif %}", "<think>{% endif %}")
BRACKETS = THINKING.replace("<think>", "[THINK]")


@pytest.mark.parametrize(
    ("template", "answer", "completion"),
    [
        (THINKING, "<think>\nhm\n</think>\n\ntwo", "hm\n</think>\n\ntwo"),
        (THINKING, "<think>hm</think>two", "hm</think>two"),
        (THINKING, "hm\n</think>\n\ntwo", "hm\n</think>\n\ntwo"),
        (REWRITTEN, "<think>\nhm\n</think>\n\ntwo", "hm\n</think>\n\ntwo"),
        (REWRITTEN, "<think>hm</think>two", "hm</think>two"),
        (REWRITTEN, "two", "\n</think>\n\ntwo"),
        (OFF, "<think>\n\n</think>\n\ntwo", "two"),
        (OFF, "<think>\nhm\n</think>\n\ntwo", "<think>\nhm\n</think>\n\ntwo"),
        (UNBROKEN, "<think>\nhm\n</think>two", "\nhm\n</think>two"),
        (BRACKETS, "[THINK]hm[/THINK]two", "hm[/THINK]two"),
        (PLAIN_CHATML, "<think>\nhm\n</think>\n\ntwo", "<think>\nhm\n</think>\n\ntwo"),
    ],
)
def test_reasoning_begins_once(template: str, answer: str, completion: str):
    tokenizer = make_tokenizer(template)
    assert decoded(tokenizer, encode(tokenizer, [user("u")], answer))[1] == f"{completion}<|im_end|>"


def losses(template: str, prompt: list[Any], *answers: Any) -> dict[str, str]:
    """What validate finds lost in a row."""
    tokenizer = make_tokenizer(template)
    row = {"id": "1", "split": "train", "source": "rows.jsonl", "row": 1, "prompt": prompt, "annotator": None}
    fields = {"response": answers[0]} if len(answers) == 1 else dict(zip(("chosen", "rejected"), answers, strict=True))
    kind: Any = "demonstrations" if len(answers) == 1 else "preferences"
    inspected = inspect(kind, row | fields)
    assert not inspected.fault
    [found] = measure(kind, [inspected], tokenizer, Reader(tokenizer))
    assert found and not found.fault
    return dict(found.losses)


# What the templates below lose is in other words of the row, so that no search for the words finds it missing.
NUMBERS: Any = {**CALLING, "tool_calls": [call_of({"count": 7, "city": "Rome", "exact": True, "note": None, "x": 1.5})]}
NAMELESS = CHATML.replace("{{ call.function.name | tojson }}", "...")
CLIPPED = CHATML.replace("{{ call.function.arguments | tojson }}", "{{ (call.function.arguments | tojson)[:20] }}")
WITHOUT_RESULT = CHATML.replace("'<tool_response>\n' + message.content + '\n</tool_response>'", "''")
NAMES_ALONE = CHATML.replace("(tool | tojson)", "tool.function.name")


@pytest.mark.parametrize(
    ("template", "prompt", "answers", "lost"),
    [
        (CHATML, with_tools(*CONVERSATION[:3]), [NUMBERS], None),
        (QWEN, with_tools(*CONVERSATION[:3]), [NUMBERS], None),
        (CHATML, with_tools(user("u"), NUMBERS, RESULT), ["a"], None),
        (PLAIN_CHATML, with_tools(user("call weather")), ["a"], "the tools"),
        (PLAIN_CHATML, [user("weather city Rome"), CALLING, RESULT], ["a"], "the call in turn 2"),
        (PLAIN_CHATML, [user("weather city Rome")], [CALLING], "the call in the answer"),
        (TEMPLATES["plain"], [user("weather city Rome")], ["no", CALLING], "the call in the answer"),
        (NAMELESS, [user("weather")], [CALLING], "the call in the answer"),
        (CLIPPED, [user("u")], [NUMBERS], "the call in the answer"),
        (WITHOUT_RESULT, [user("sunny"), CALLING, RESULT], ["a"], "the result in turn 3"),
        (NAMES_ALONE, with_tools(user("u")), ["a"], "the tools"),
        (LLAMA, [user("I look.")], [assistant("I look.") | CALLING | {"content": "I look."}], "what the answer says"),
        (LLAMA, [user("u")], [CALLING], None),
    ],
)
def test_what_a_template_leaves_out_of_tools_is_found(
    template: str, prompt: list[Any], answers: list[Any], lost: str | None
):
    found = losses(template, prompt, *answers)
    if lost is None:
        assert found == {}
        return
    assert list(found) == ["lost_tools"]
    assert found["lost_tools"].startswith(f"the chat template leaves out {lost}")
    assert found["lost_tools"].endswith(": choose one that writes it (base.chat_template)")


@pytest.mark.skipif(not STORIES.exists(), reason="../shared/models is not here")
def test_the_mask_by_places_in_the_text_of_a_real_tokenizer():
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(STORIES / "tokenizer.json"), eos_token="</s>")
    tokenizer.chat_template = CHATML.replace("<|im_end|>", tokenizer.eos_token).replace("<|im_start|>", "\n# ")
    offered = with_tools(*CONVERSATION)
    for turn in answered_turns(offered):
        row = encode(tokenizer, turn.prompt, turn.response)
        asked, *_ = (
            tokenizer.apply_chat_template(
                [{**message, "tools": None} for message in turn.prompt],
                **{"tools": TOOLS, "tokenize": False, "add_generation_prompt": True},
            ),
        )
        answers = TEXT if turn.response == CALLING else turn.response
        given = tokenizer(
            f"{asked}{answers}{tokenizer.eos_token}", add_special_tokens=False, return_offsets_mapping=True
        )
        assert [*row.prompt, *row.completion] == given["input_ids"]
        learned = [start >= len(asked) for start, _ in given["offset_mapping"]]
        assert learned == [False] * len(row.prompt) + [True] * len(row.completion)


def test_a_long_row_that_is_cut_keeps_its_tools_and_its_calls():
    tokenizer = make_tokenizer(CHATML)
    place = {"id": "1", "split": "train", "source": "rows.jsonl", "row": 1, "annotator": None}

    def cut(prompt: list[Any], answer: Answer, how: Any, less: int) -> dict[str, Any]:
        row = {**place, "prompt": prompt, "response": answer}
        [cut] = truncated("demonstrations", [row], tokenizer, how, encode(tokenizer, prompt, answer).length - less)
        return dict(cut)

    whole = with_tools(*CONVERSATION)
    earlier = cut([*whole[:4], user("v w")], "b", "prompt_start", 30)
    assert earlier["prompt"] == with_tools(user("v w"))
    words = cut(with_tools(user("v w"), CALLING, RESULT), "b", "prompt_start", 1)
    assert words["prompt"] == with_tools(user("w"), CALLING, RESULT)
    for prompt, how in ((with_tools(user("v w")), "answer_end"), ([SYSTEM, CALLING, RESULT], "prompt_start")):
        assert cut(prompt, CALLING, how, 1) == {**place, "prompt": prompt, "response": CALLING}
