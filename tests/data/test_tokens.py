"""Chat templates, the end-of-sequence token, and rows that do not fit."""

from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import (
    Text,
    decode,
    encode,
    encode_prompt,
    encode_prompts,
    encode_records,
    encode_texts,
    load_tokenizer,
)
from tasks.data.records import Demonstration, Message, Prompt
from tests.conftest import CHATML, make_tokenizer

QUESTION = [Message(role="user", content="send it")]
# The answer follows the prompt with a space, ends with the end-of-sequence token, and nothing announces it.
LLAMA_2 = (
    "{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
# The turn ends with a token of its own, which is not the end-of-sequence token.
GEMMA = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# What announces the answer is gone once the answer is there.
REWRITING = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>{% endif %}"
)
ALTERNATING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def text(tokenizer: Any, ids: list[int]) -> str:
    """All of it, special tokens too."""
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def test_a_prompt_ends_where_the_assistant_is_to_answer(tokenizer: Any):
    assert text(tokenizer, encode_prompt(tokenizer, QUESTION)) == (
        "<|im_start|>user\nsend it<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_follows_the_generation_prompt_and_ends_once(tokenizer: Any):
    row = encode(tokenizer, QUESTION, "yes today")
    assert row.prompt == encode_prompt(tokenizer, QUESTION)
    assert text(tokenizer, row.completion) == "yes today<|im_end|>"  # the template's newline after it is dropped
    assert row.completion.count(tokenizer.eos_token_id) == 1
    assert row.length == len(row.prompt) + len(row.completion)


@pytest.mark.parametrize(
    ("template", "completion"),
    [
        (LLAMA_2, " yes today <|im_end|>"),
        (GEMMA, "yes today</turn>\n<|im_end|>"),
        (REWRITING, "yes today<|im_end|>"),
    ],
)
def test_templates_of_other_families(template: str, completion: str):
    tokenizer = make_tokenizer(template)
    row = encode(tokenizer, QUESTION, "yes today")
    assert row.prompt == encode_prompt(tokenizer, QUESTION)
    assert text(tokenizer, row.completion) == completion


def test_an_answer_that_the_question_quotes_is_found_in_its_own_place(tokenizer: Any):
    row = encode(tokenizer, QUESTION, "send it")
    assert text(tokenizer, row.completion) == "send it<|im_end|>"


def test_padding_that_is_the_end_of_sequence_token_changes_no_ids(tokenizer: Any):
    same = make_tokenizer()
    same.pad_token = same.eos_token
    assert encode(same, QUESTION, "yes") == encode(tokenizer, QUESTION, "yes")


def test_decode_drops_special_tokens_and_keeps_spaces(tokenizer: Any):
    assert decode(tokenizer, encode(tokenizer, QUESTION, "yes , today .  now").completion) == "yes , today .  now"


def test_an_answer_with_the_end_of_sequence_token_inside_is_refused(tokenizer: Any):
    with pytest.raises(InputError, match=r"control token <\|im_end\|>: remove it"):
        encode(tokenizer, QUESTION, "yes<|im_end|>no")


def test_a_template_that_raises_names_file_row_and_cure():
    record = Demonstration("a", "train", "raw.jsonl", 7, [Message(role="system", content="be kind")], "yes")
    with pytest.raises(InputError, match=r"raw.jsonl row 7: the chat template refuses.*no system role.*base.chat_temp"):
        list(encode_records(make_tokenizer(ALTERNATING), "demonstrations", [record]))


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, GEMMA, REWRITING])
def test_many_texts_at_once_give_the_ids_of_each_alone(template: str):
    tokenizer = make_tokenizer(template)
    asked = [[Message(role="user", content=content)] for content in ("send it", "no", "grüße", "please order")]
    texts = [Text(prompt, responses) for prompt in asked for responses in (["yes", " now "], [], ["thanks\n"])]
    for text, parts in zip(texts, encode_texts(tokenizer, texts), strict=True):
        alone = [encode(tokenizer, text.prompt, response) for response in text.responses]
        assert parts == [encode_prompt(tokenizer, text.prompt), *(row.completion for row in alone)]


def test_a_text_that_cannot_be_encoded_leaves_those_beside_it_alone(tokenizer: Any):
    texts = [Text(QUESTION, ["yes"]), Text(QUESTION, ["no<|im_end|>"]), Text(QUESTION, ["no"])]
    first, second, third = encode_texts(tokenizer, texts)
    assert isinstance(second, InputError)
    assert [first, third] == [[*encode(tokenizer, QUESTION, response)] for response in ("yes", "no")]


def test_a_prompt_must_leave_room_for_its_answer(tokenizer: Any):
    record = Prompt("a", "test", "raw.jsonl", 3, QUESTION, [])
    length = len(encode_prompt(tokenizer, QUESTION))
    assert len(encode_prompts(tokenizer, [record], length + 5, 5)[0]) == length
    with pytest.raises(InputError, match=r"raw.jsonl row 3: .*max_new_tokens"):
        encode_prompts(tokenizer, [record], length + 5, 6)


def test_a_model_folder_gives_its_tokenizer(tiny_model: Path):
    assert load_tokenizer(tiny_model).eos_token == "<|im_end|>"


def test_a_folder_without_tokenizer(tmp_path: Path):
    with pytest.raises(InputError, match="no tokenizer that loads"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("lacking", "cure"),
    [
        ("chat_template", "base.chat_template"),
        ("pad_token", "base.pad_token"),
        ("eos_token", "set eos_token"),
    ],
)
def test_a_tokenizer_that_lacks_something_says_the_cure(tmp_path: Path, lacking: str, cure: str):
    tokenizer = make_tokenizer()
    setattr(tokenizer, lacking, None)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=cure):
        load_tokenizer(tmp_path)
