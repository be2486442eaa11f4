"""Tools, calls and results as people write them: one canonical form, or one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.common.files import PREPARED
from tasks.data.records import Demonstration, Kind, Message, Preference, read_prompts, read_records
from tasks.data.shapes.conversations import LAST_ALONE, as_answer, as_pair, as_prompt
from tasks.data.shapes.messages import as_messages, context_only
from tasks.data.shapes.tools import as_calls, as_tools
from tasks.data.shapes.values import ShapeError
from tasks.data.tool_calls import answer_as_text, message_as_text
from tasks.prepare import prepare
from tests.data.shaping import entries as entries_of
from tests.data.test_conversations import assistant, user
from tests.test_prepare import PROJECT, params_with

GLAIVE = PROJECT / "../shared/data/shapes/glaive_toolcall_en_demo.json"
WEATHER = {"name": "weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": WEATHER}]


def call_of(arguments: dict[str, Any], name: str = "weather") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CALL = call_of({"city": "Rome"})
CALLING: Any = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT: Any = {"role": "tool", "content": "sunny"}


@pytest.mark.parametrize(
    "value",
    [
        TOOLS,
        [WEATHER],
        json.dumps(TOOLS),
        json.dumps([WEATHER]),
        [json.dumps(WEATHER)],
        [{"type": "function", "function": WEATHER | {"strict": None}}],  # as Parquet fills in what other tools have
        [{"type": None, "function": WEATHER}],
    ],
)
def test_tools_have_one_form(value: object):
    assert as_tools(value) == TOOLS


@pytest.mark.parametrize("value", [None, "", [], "[]", "null"])
def test_no_tools(value: object):
    assert as_tools(value) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[{", "tools is not valid JSON, perhaps cut off ("),
        ("search", "tools is not valid JSON"),
        (7, "tools is the number 7 where a list of JSON schemas is needed"),
        (["{}"], "the function of tool 1 of tools is null where an object is needed"),
        ([{"name": ""}], "tool 1 of tools names no function"),
        ([WEATHER, {"type": "retrieval"}], "tool 2 of tools is of the type 'retrieval' where a function is needed"),
        ([{"function": WEATHER, "cost": 1}], "tool 1 of tools holds cost beside its function, which is not read"),
        ([WEATHER | {"x": float("nan")}], "tool 1 of tools holds nan, which is no JSON"),
    ],
)
def test_other_tools_are_refused(value: object, message: str):
    with pytest.raises(ShapeError) as error:
        as_tools(value)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "value",
    [
        CALL,
        [CALL],
        {"name": "weather", "arguments": {"city": "Rome"}},
        {"name": "weather", "arguments": '{"city": "Rome"}'},
        '{"name": "weather", "arguments": {"city": "Rome"}}',
        '[{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}]',
        [call_of({}) | {"id": None, "function": {"name": "weather", "arguments": ' {"city": "Rome"}\n'}}],
        [{"type": None, "function": {"name": "weather", "arguments": {"city": "Rome"}, "parsed_arguments": None}}],
    ],
)
def test_calls_have_one_form(value: object):
    assert as_calls(value, "x") == [CALL]


def test_a_call_keeps_its_id_the_order_of_its_arguments_and_their_types():
    arguments = '{"b": 1, "a": [true, null, 1.5, {"c": "é"}]}'
    [call] = as_calls([{"id": "c1", "function": {"name": "f", "arguments": arguments}}], "x")
    assert json.dumps(call, ensure_ascii=False) == (
        f'{{"id": "c1", "type": "function", "function": {{"name": "f", "arguments": {arguments}}}}}'
    )
    assert as_calls({"name": "f"}, "x") == as_calls({"name": "f", "arguments": ""}, "x") == [call_of({}, "f")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "f", "arguments": '{"a": '}, "arguments of call 1 of x is not valid JSON, perhaps cut off ("),
        ({"name": "f", "arguments": '{"a": 1, "a": 2}'}, "arguments of call 1 of x names the key 'a' twice"),
        ({"name": "f", "arguments": "[1]"}, "arguments of call 1 of x is a list where an object is needed"),
        ({"name": "f", "arguments": '{"a": NaN}'}, "arguments of call 1 of x holds nan, which is no JSON"),
        ({"arguments": {}}, "call 1 of x names no function"),
        ({"name": 7}, "the function's name in call 1 of x is the number 7 where a text is needed"),
        ([CALL, {"type": "code", "function": {}}], "call 2 of x is of the type 'code' where the call of a function"),
        (CALL | {"index": 0}, "call 1 of x holds index beside the function's name and arguments"),
        ([], "x is an empty list where a call is needed"),
        ("weather(city='Rome')", "x is not valid JSON"),
    ],
)
def test_other_calls_are_refused(value: object, message: str):
    with pytest.raises(ShapeError) as error:
        as_calls(value, "x")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "value",
    [
        [user("u"), CALLING, RESULT, assistant("a")],
        [user("u"), {"role": "assistant", "tool_calls": [CALL]}, RESULT | {"name": ""}, assistant("a")],
        [user("u"), CALLING | {"content": None}, {"role": "function", "content": "sunny"}, assistant("a")],
        [
            user("u"),
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "weather", "arguments": '{"city":"Rome"}'},
            },
            RESULT,
            assistant("a"),
        ],
        [
            {"from": "human", "value": "u"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "a"},
        ],
    ],
)
def test_conversations_have_one_form(value: object):
    assert as_messages(value, "x") == [user("u"), CALLING, RESULT, assistant("a")]


def test_a_call_goes_on_from_what_was_said_right_before():
    spoken, first, second = (
        {"from": "gpt", "value": "I look."},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
        {"from": "tool_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
    )
    conversation = [{"from": "human", "value": "u"}, spoken, first, second, {"from": "observation", "value": "r"}]
    [_, message, result] = as_messages(conversation, "x")
    assert message == assistant("I look.") | {"tool_calls": [CALL, call_of({"city": "Oslo"})]}
    assert result == {"role": "tool", "content": "r"}
    ignored = [conversation[0], *({**each, "weight": 0} for each in (spoken, first, second)), {**conversation[4]}]
    assert context_only(ignored) == [1]
    with pytest.raises(ShapeError, match="message 4 of x is a part of the one before, but only one is to be learned"):
        as_messages([*conversation[:3], {**second, "weight": 0}], "x")


def test_a_result_says_what_it_is_of():
    sunny = {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "c1"}
    assert as_messages([CALLING, sunny, RESULT], "x") == [CALLING, sunny, RESULT]
    for before in ([], [user("u")]):
        with pytest.raises(ShapeError, match=f"message {len(before) + 1} of x is the result of a tool, but follows no"):
            as_messages([*before, sunny], "x")


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (user("u") | {"tool_calls": [CALL]}, "message 1 of x holds tool_calls beside its text"),
        (RESULT | {"tool_calls": [CALL]}, "message 1 of x holds tool_calls beside its text"),
        (assistant("a") | {"name": "ann"}, "message 1 of x holds name beside its text"),
        (CALLING | {"function_call": {"name": "f"}}, "message 1 of x has tool_calls and function_call where one"),
        ({"role": "tool", "content": None}, "the content of message 1 of x is null where a text is needed"),
        ({"role": "tool_call", "content": "f()"}, "the content of message 1 of x is not valid JSON"),
        (RESULT | {"weight": 1}, "message 1 of x is to be learned, but only what the assistant says is"),
    ],
)
def test_other_messages_are_refused(message: object, fault: str):
    with pytest.raises(ShapeError) as error:
        as_messages([message], "x")
    assert str(error.value).startswith(fault)


def test_a_prompt_may_end_with_a_result():
    asked = [user("u"), CALLING, RESULT]
    assert as_prompt(asked) == asked
    assert as_answer("a", asked, "chosen").response == "a"
    with pytest.raises(ShapeError, match="prompt ends with the assistant where the user must speak last"):
        as_prompt(asked[:2])


def test_an_answer_may_be_a_call():
    assert as_answer(CALLING, [user("u")], "chosen").response == CALLING
    assert as_answer([user("u"), CALLING], [user("u")], "chosen").response == CALLING
    pair = as_pair([user("u"), CALLING], [user("u"), assistant("no")])
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("u")], CALLING, "no")
    pair = as_pair([user("u"), CALLING, RESULT, assistant("a")], [user("u"), CALLING, RESULT, CALLING])
    assert (pair.prompt, pair.chosen, pair.rejected) == ([user("u"), CALLING, RESULT], "a", CALLING)


def test_an_answer_of_a_pair_is_one_message():
    whole = [CALLING, RESULT, assistant("a")]
    with pytest.raises(ShapeError) as error:
        as_answer(whole, [user("u")], "chosen")
    assert str(error.value) == f"chosen has 3 messages that do not repeat the prompt ({LAST_ALONE})"
    with pytest.raises(ShapeError) as error:
        as_pair([user("u"), *whole], [user("u"), assistant("b")])
    assert str(error.value) == f"chosen and rejected differ before their last message ({LAST_ALONE})"


def entries(kind: Kind, **fields: object) -> list[dict[str, Any]]:
    return entries_of(kind, fields)


def with_tools(*messages: Message) -> list[Any]:
    return [{**messages[0], "tools": TOOLS}, *messages[1:]]


def test_every_message_of_the_assistant_is_a_demonstration():
    whole = [user("u"), CALLING, RESULT, assistant("a"), user("v"), assistant("b")]
    expected = [
        {"prompt": with_tools(*whole[:1]), "response": CALLING},
        {"prompt": with_tools(*whole[:3]), "response": "a"},
        {"prompt": with_tools(*whole[:5]), "response": "b"},
    ]
    assert entries("demonstrations", messages=whole, tools=[WEATHER]) == expected
    asked = {"prompt": whole[:1], "tools": json.dumps(TOOLS)}
    assert entries("demonstrations", **asked, completion=whole[1:4]) == expected[:2]
    unlearned = [CALLING | {"weight": 0}, RESULT, assistant("a")]
    assert entries("demonstrations", **asked, completion=unlearned) == expected[1:2]


def test_pairs_ratings_and_prompts_have_tools_and_calls():
    asked = {"prompt": "u", "tools": TOOLS}
    pair = {"prompt": with_tools(user("u")), "chosen": CALLING, "rejected": "no"}
    assert entries("preferences", **asked, chosen=[CALLING], rejected="no") == [pair]
    rated = {"prompt": with_tools(user("u")), "response": CALLING, "desirable": True}
    assert entries("ratings", **asked, completion=[CALLING], label=True) == [rated]
    with pytest.raises(InputError, match="response has 3 messages that do not repeat the prompt"):
        entries("ratings", **asked, completion=[CALLING, RESULT, assistant("a")], label=True)
    text = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    assert entries("prompts", messages=[user("u"), CALLING, RESULT], tools=TOOLS) == [
        {"prompt": with_tools(user("u")), "references": [text]},
        {"prompt": with_tools(user("u"), CALLING, RESULT), "references": []},
    ]


def test_our_own_records_are_read_as_they_are():
    """As `trueline label` writes pairs: the tools are in the first message."""
    asked = with_tools(user("u"), CALLING, RESULT)
    pair = {"prompt": asked, "chosen": CALLING, "rejected": "no"}
    assert entries("preferences", **pair) == entries("preferences", **pair, tools=TOOLS) == [pair]
    system: Any = {"role": "system", "content": "Be kind."}
    [found] = entries("preferences", **pair, system="Be kind.")
    assert found["prompt"] == with_tools(system, user("u"), CALLING, RESULT)
    with pytest.raises(InputError, match="tools and the first message name different functions"):
        entries("preferences", **pair, tools=[{"name": "search"}])
    plain = {"prompt": [user("u"), CALLING, RESULT]}
    whole = {"chosen": [*asked, CALLING], "rejected": [*asked, assistant("no")]}
    assert entries("preferences", **plain, **whole) == [pair]
    with pytest.raises(InputError, match="chosen and rejected say different things before the prompt"):
        entries("preferences", **plain, **whole | {"rejected": "no"})
    with pytest.raises(InputError, match="chosen has tools in the answer where the conversation's first message has"):
        entries("preferences", **pair | {"chosen": [assistant("a") | {"tools": TOOLS}]})
    with pytest.raises(InputError, match="message 2 of prompt holds tools beside its text"):
        entries("preferences", **pair | {"prompt": [user("t"), *asked]})


def test_a_call_as_text_is_what_it_says_and_its_calls():
    both: Any = assistant("I look.") | {"tool_calls": [CALL, call_of({"a": "é", "b": [1.5, True]}, "f")]}
    text = (
        'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": {"a": "é", "b": [1.5, true]}}\n</tool_call>'
    )
    assert answer_as_text(both) == message_as_text(both) == text
    assert answer_as_text("plain") == message_as_text(user("plain")) == "plain"
    [first] = with_tools(user("u"))
    assert message_as_text(first) == f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>\nu"


def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, source: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("exclude.txt").touch()
    prepare(params_with(**{kind: {"source": str(source.resolve())}}))


def test_broken_arguments_are_named_by_file_and_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a":'}}]}
    source = tmp_path / "calls.jsonl"
    source.write_text(json.dumps({"messages": [user("u"), broken]}))
    with pytest.raises(InputError) as error:
        prepared(tmp_path, monkeypatch, "demonstrations", source)
    assert str(error.value) == (
        f"{source} row 1: arguments of call 1 of tool_calls of message 2 of messages is not valid JSON, perhaps cut "
        "off (Expecting value): fix or remove the row"
    )


@pytest.mark.skipif(not GLAIVE.exists(), reason="../shared/data is not here")
def test_a_real_file_of_calls_is_read_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = json.loads(GLAIVE.read_text(encoding="utf-8"))
    prepared(tmp_path, monkeypatch, "demonstrations", GLAIVE)
    found = [record for record in read_records(PREPARED, "demonstrations") if isinstance(record, Demonstration)]
    spoken = [turn for row in raw for turn in row["conversations"] if turn["from"] in ("gpt", "function_call")]
    assert len(found) == len(spoken)  # each answers a person or a result
    for record, turn in zip(found, spoken, strict=True):
        if turn["from"] == "gpt":
            assert record.response == turn["value"]
        else:
            assert isinstance(record.response, dict)
            [call] = record.response["tool_calls"]
            assert call["function"] == json.loads(turn["value"])
    offered = [json.loads(raw[record.row - 1]["tools"]) for record in found]
    assert [[tool["function"] for tool in record.prompt[0].get("tools", [])] for record in found] == offered
    results = [message for record in found for message in record.prompt if message["role"] == "tool"]
    assert any(message["content"] == '{"bmi": 22.86}' for message in results)


def test_rows_of_a_pair_are_votes_whatever_the_ids_of_their_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [
        {
            **{"prompt": f"u{number}", "chosen": [CALLING | {"tool_calls": [CALL | {"id": f"c{number}{name}"}]}]},
            **{"rejected": "no", "annotator": name},
        }
        for number in range(50)
        for name in ("ann", "bob")
    ]
    source = tmp_path / "votes.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    prepared(tmp_path, monkeypatch, "preferences", source)
    found = [record for record in read_records(PREPARED, "preferences") if isinstance(record, Preference)]
    assert [record.share for record in found] == [1.0] * 50


def test_prompts_of_other_tools_are_other_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"prompt": f"u{number}", "tools": tools} for number in range(50) for tools in (TOOLS, None)]
    source = tmp_path / "prompts.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    prepared(tmp_path, monkeypatch, "prompts", source)
    assert len(read_prompts(PREPARED)) == 100
