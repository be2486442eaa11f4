"""Conversations as token ids: the chat template, the end-of-sequence token, and what fits the model's context.

A completion is written behind the template's generation prompt, so training sees exactly what generation sees.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from jinja2 import TemplateError

from tasks.data.records import Demonstration, Message, Preference, Prompt, Record
from tasks.errors import InputError

if TYPE_CHECKING:  # transformers costs seconds to import: only the function that loads a tokenizer pays
    from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SomeRecord = TypeVar("SomeRecord", Demonstration, Preference, Prompt)
Row = TypeVar("Row")


class Encoded(NamedTuple):
    """A prompt and an answer as token ids."""

    prompt: list[int]  # ends with the template's generation prompt
    completion: list[int]  # ends with the end-of-sequence token, which it holds once

    @property
    def length(self) -> int:
        """Tokens of prompt and completion together."""
        return len(self.prompt) + len(self.completion)


class EncodedPair(NamedTuple):
    """Two answers to one prompt, of which the first was preferred."""

    chosen: Encoded
    rejected: Encoded

    @property
    def length(self) -> int:
        """Tokens of the longer of the two rows."""
        return max(self.chosen.length, self.rejected.length)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model folder.

    Raises:
        InputError: the folder has no tokenizer, or the tokenizer lacks a chat template, an end-of-sequence token
            or a padding token.
    """
    from transformers import PreTrainedTokenizerBase

    try:
        tokenizer = _tokenizer_class(folder).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{folder} has no tokenizer that loads ({reason}): save one there") from None
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if tokenizer.eos_token_id is None:
        raise InputError(f"{folder}: the tokenizer has no end-of-sequence token: set eos_token in its tokenizer_config")
    if tokenizer.pad_token_id is None:
        raise InputError(f"{folder}: the tokenizer has no padding token: name one in params.yaml, base.pad_token")
    if not tokenizer.chat_template:
        raise InputError(f"{folder}: the tokenizer has no chat template: choose one in params.yaml, base.chat_template")
    return tokenizer


def _tokenizer_class(folder: Path) -> "type[AutoTokenizer | PreTrainedTokenizerFast]":
    """Name a folder's class; the one without a family is taken directly, since AutoTokenizer imports torch."""
    from transformers import PreTrainedTokenizerFast

    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if dict(settings).get("tokenizer_class") == PreTrainedTokenizerFast.__name__:
        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message]) -> list[int]:
    """Write a conversation in the chat template, up to where the assistant is to answer.

    Raises:
        InputError: the template refuses the conversation.
    """
    return _ids(tokenizer, _render(tokenizer, prompt, generation_prompt=True))


def encode(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], response: str) -> Encoded:
    """Write a conversation and its answer in the chat template.

    What the template itself puts around the answer is kept up to its first end-of-sequence token; one is added where it
    has none.

    Raises:
        InputError: the template refuses the conversation, or the answer's text holds the end-of-sequence token.
    """
    asked = _render(tokenizer, prompt, generation_prompt=True)
    answer = _answer(tokenizer, asked, prompt, response)
    prompt_ids, joint = _ids(tokenizer, asked), _ids(tokenizer, asked + answer)
    # A token may span the seam of prompt and answer; generation starts from the prompt's own tokens, so does training.
    continues = joint[: len(prompt_ids)] == prompt_ids
    completion = joint[len(prompt_ids) :] if continues else _ids(tokenizer, answer)
    if tokenizer.eos_token_id in completion:
        raise InputError(f"the answer holds the control token {tokenizer.eos_token}: remove it or the row")
    return Encoded(prompt_ids, [*completion, tokenizer.eos_token_id])


def decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Turn token ids into text, without special tokens and with its spaces as they are."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def encode_demonstrations(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[Demonstration], context: int | None
) -> list[Encoded]:
    """Encode demonstrations for a model with room for `context` tokens (None: any number).

    Raises:
        InputError: naming file and row, where one cannot be encoded or is longer than the context.
    """
    return _each(records, lambda record: encode(tokenizer, record.prompt, record.response), _length, context)


def encode_preferences(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[Preference], context: int | None
) -> list[EncodedPair]:
    """Encode preference pairs for a model with room for `context` tokens (None: any number).

    Raises:
        InputError: naming file and row, where one cannot be encoded or is longer than the context.
    """

    def pair(record: Preference) -> EncodedPair:
        return EncodedPair(*(encode(tokenizer, record.prompt, answer) for answer in (record.chosen, record.rejected)))

    return _each(records, pair, _length, context)


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[Prompt], context: int | None, new_tokens: int
) -> list[list[int]]:
    """Encode prompts that leave room for an answer of `new_tokens` in a context of `context` tokens (None: any number).

    Raises:
        InputError: naming file and row, where one cannot be encoded or leaves no such room.
    """
    return _each(
        records, lambda record: encode_prompt(tokenizer, record.prompt), lambda ids: len(ids) + new_tokens, context
    )


@contextmanager
def naming(record: Record) -> Iterator[None]:
    """Put the file and row of a record before the sentence of an InputError."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{record.source} row {record.row}: {error}") from None


def _each(
    records: Sequence[SomeRecord],
    encode_one: Callable[[SomeRecord], Row],
    needed: Callable[[Row], int],
    context: int | None,
) -> list[Row]:
    """Encode records one by one; an InputError names the record, also where it needs more than the context."""
    rows = []
    for record in records:
        with naming(record):
            rows.append(encode_one(record))
            _check_fits(needed(rows[-1]), context)
    return rows


def _length(row: Encoded | EncodedPair) -> int:
    return row.length


def _check_fits(length: int, context: int | None) -> None:
    if context is not None and length > context:
        cure = (
            "shorten the row, lower validate.max_tokens or max_new_tokens, or take a base model with a longer context"
        )
        raise InputError(f"prompt and answer need {length} tokens, but the model's context is {context}: {cure}")


def _answer(tokenizer: "PreTrainedTokenizerBase", asked: str, prompt: Sequence[Message], response: str) -> str:
    """The text behind the generation prompt, without the end-of-sequence token."""
    rendered = _render(tokenizer, [*prompt, Message(role="assistant", content=response)], generation_prompt=False)
    start = rendered.find(response.strip(), len(asked))
    if not rendered.startswith(asked) or start < 0:
        return response  # the template rewrites an answered conversation: the bare answer follows the prompt
    end = start + len(response.strip())
    return rendered[len(asked) : end] + rendered[end:].split(str(tokenizer.eos_token))[0]


def _render(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, generation_prompt: bool) -> str:
    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
    except (TemplateError, TypeError) as error:
        cure = "mend the row or choose another template (base.chat_template)"
        raise InputError(f"the chat template refuses the conversation ({error}): {cure}") from None
    assert isinstance(text, str)
    return text


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # Quiet about length: the template brings its own special tokens, and the context is checked with file and row.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert isinstance(ids, list)
    return ids
