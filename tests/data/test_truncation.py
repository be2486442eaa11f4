"""Long rows are cut to the limit: which part of each kind, what is left of conversations, and what is learned."""

from pathlib import Path
from typing import Any

import pytest

from tasks.common.files import write_jsonl
from tasks.data.checks.truncation import truncated
from tasks.data.encoding.encoded import encoded_demonstrations, encoded_preferences
from tasks.data.encoding.tokens import Parts, as_text, encode_texts
from tasks.data.records import Kind
from tests.conftest import CHATML, make_tokenizer

PLACE = {"id": "1", "split": "train", "source": "rows.jsonl", "row": 1}
# Capital letters and spaces are a token each. The template's `<|im_start|>user\n` is 5 tokens, `<|im_end|>\n` 2 and
# `<|im_start|>assistant\n` 10.
QQ = 5 + 2 + 2 + 10  # tokens of the prompt that asks QQ


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def demonstration(prompt: list[dict[str, str]], response: str) -> dict[str, Any]:
    return {**PLACE, "prompt": prompt, "response": response, "annotator": None}


def pair(chosen: str, rejected: str) -> dict[str, Any]:
    return {**PLACE, "prompt": [turn("user", "QQ")], "chosen": chosen, "rejected": rejected, "annotator": None}


def cut(tokenizer: Any, kind: Kind, row: dict[str, Any], how: Any, limit: int) -> dict[str, Any]:
    [found] = truncated(kind, [row], tokenizer, how, limit)
    return dict(found)


def parts(tokenizer: Any, kind: Kind, row: dict[str, Any]) -> Parts:
    [found] = encode_texts(tokenizer, [as_text(kind, row)])
    assert isinstance(found, list)
    return found


def test_the_tokens_that_the_other_tests_count_with(tokenizer: Any) -> None:
    prompt, answer = parts(tokenizer, "demonstrations", demonstration([turn("user", "QQ")], "AA BB"))
    assert (len(prompt), len(answer)) == (QQ, 5 + 1)


@pytest.mark.parametrize("how", ["prompt_start", "answer_end"])
@pytest.mark.parametrize("kind", ["demonstrations", "preferences", "ratings", "prompts"])
def test_a_row_within_the_limit_and_one_of_a_wrong_shape_stay(tokenizer: Any, kind: Kind, how: Any) -> None:
    row = demonstration([turn("user", "QQ")], "AA BB")
    length = sum(map(len, parts(tokenizer, "demonstrations", row)))
    assert cut(tokenizer, "demonstrations", row, how, length) == row
    assert cut(tokenizer, kind, {"prompt": 3}, how, 1) == {"prompt": 3}


def test_an_answer_loses_its_end_at_a_word_and_has_no_end_of_sequence(tokenizer: Any) -> None:
    row = demonstration([turn("user", "QQ")], "AA BBB CC")  # QQ + 9 + 1 tokens
    found = cut(tokenizer, "demonstrations", row, "answer_end", QQ + 8)
    assert found == {**row, "response": "AA BBB", "truncated": {"response": 4}}
    prompt, answer = parts(tokenizer, "demonstrations", found)
    assert (len(prompt), len(answer)) == (QQ, 6)
    assert tokenizer.eos_token_id not in answer
    # One token less than "AA BBB" needs; and no room for any word.
    assert cut(tokenizer, "demonstrations", row, "answer_end", QQ + 5)["response"] == "AA"
    assert cut(tokenizer, "demonstrations", row, "answer_end", QQ + 1) == row


def test_the_closing_of_a_turn_goes_with_the_end() -> None:
    closing = make_tokenizer(CHATML.replace("<|im_end|>", "</turn>"))
    row = demonstration([turn("user", "QQ")], "AA BB")
    whole = parts(closing, "demonstrations", row)[1]
    found = cut(closing, "demonstrations", row, "answer_end", len(parts(closing, "demonstrations", row)[0]) + 4)
    assert closing.decode(whole, skip_special_tokens=False) == "AA BB</turn>\n<|im_end|>"
    assert closing.decode(parts(closing, "demonstrations", found)[1], skip_special_tokens=False) == "AA"


def test_text_without_spaces_is_cut_within(tokenizer: Any) -> None:
    row = demonstration([turn("user", "QQ")], "A" * 70)
    assert cut(tokenizer, "demonstrations", row, "answer_end", QQ + 59)["response"] == "A" * 40


def test_each_answer_of_a_pair_loses_its_own_end(tokenizer: Any) -> None:
    found = cut(tokenizer, "preferences", pair("AA BB CC", "AA DD"), "answer_end", QQ + 6)
    assert (found["chosen"], found["rejected"], found["truncated"]) == ("AA BB", "AA DD", {"chosen": 4})
    _, chosen, rejected = parts(tokenizer, "preferences", found)
    assert (len(chosen), chosen[-1] == tokenizer.eos_token_id) == (5, False)
    assert (len(rejected), rejected[-1] == tokenizer.eos_token_id) == (6, True)


def test_the_answers_of_a_pair_keep_one_prompt(tokenizer: Any) -> None:
    row = pair("AA BB CC", "AA") | {"prompt": [turn("user", "WW QQ")]}
    found = cut(tokenizer, "preferences", row, "prompt_start", QQ + 9)
    assert found == {**row, "prompt": [turn("user", "QQ")], "truncated": {"prompt": 3}}


def test_earlier_turns_go_first_and_whole_and_the_system_stays(tokenizer: Any) -> None:
    system, asked = turn("system", "S"), turn("user", "QQ WW")
    first, second = ([turn("user", name), turn("assistant", name * 3)] for name in "EF")
    row = {**PLACE, "prompt": [system, *first, *second, asked], "references": ["R"], "category": None}

    def length(prompt: object) -> int:
        return len(parts(tokenizer, "prompts", row | {"prompt": prompt})[0])

    whole = length(row["prompt"])
    for how in ("prompt_start", "answer_end"):  # a prompt has no answer to cut
        found = cut(tokenizer, "prompts", row, how, whole - 1)
        assert found["prompt"] == [system, *second, asked]
        assert found["truncated"] == {"prompt": whole - length([system, *second, asked])}
    assert cut(tokenizer, "prompts", row, "prompt_start", length([system, asked]))["prompt"] == [system, asked]
    last = cut(tokenizer, "prompts", row, "prompt_start", length([system, asked]) - 1)["prompt"]
    assert last == [system, turn("user", "WW")]
    assert cut(tokenizer, "prompts", row, "prompt_start", length(last) - 1) == row


def test_a_conversation_that_the_assistant_opens_begins_with_the_user_after_the_cut(tokenizer: Any) -> None:
    prompt = [turn("assistant", "HH"), turn("user", "QQ")]
    found = cut(tokenizer, "demonstrations", demonstration(prompt, "AA"), "prompt_start", QQ + 3)
    assert found["prompt"] == prompt[1:]


def test_stages_read_a_cut_answer_without_the_end_of_sequence(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, row in (
        ("demonstrations", demonstration([turn("user", "QQ")], "AA BB CC")),
        ("preferences", pair("AA BB CC", "AA DD")),
    ):
        write_jsonl(Path(f"{kind}.jsonl"), truncated(kind, [row], tokenizer, "answer_end", QQ + 6))  # type: ignore[arg-type]
    [one] = encoded_demonstrations(Path(), "train", tokenizer, None)
    [two] = encoded_preferences(Path(), "train", tokenizer, None)
    end = tokenizer.eos_token_id
    assert (one.completion[-1], two.chosen.completion[-1], two.rejected.completion[-1]).count(end) == 1
    assert two.rejected.completion[-1] == end
