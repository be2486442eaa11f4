"""Conversations as token ids: the chat template, the end-of-sequence token, and what fits the model's context.

A completion is written behind the template's generation prompt, so training sees exactly what generation sees.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.common.errors import InputError
from tasks.data.encoding.rendering import RefusedError, Render, rendering
from tasks.data.records import ANSWERS, Answer, Kind, Message, Prompt, Record
from tasks.data.tool_calls import answer_as_text, as_answer_message

if TYPE_CHECKING:  # transformers costs seconds to import: only the function that loads a tokenizer pays
    from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

RECORDS_AT_ONCE = 128
# A generation prompt that ends within reasoning, or after an empty one: "<think>\n", "<think>\n\n</think>\n\n".
MARK = re.compile(r"[<\[]/?\w+[>\]]")
OPENED = re.compile(r"[<\[](\w+)[>\]]\s*(?:[<\[]/\1[>\]]\s*)?\Z")
Parts = list[list[int]]  # the ids of a prompt, then those of each answer to it


class Text(NamedTuple):
    """A conversation, and the answers to it."""

    prompt: Sequence[Message]
    responses: Sequence[Answer] = ()
    cut: Collection[int] = ()  # places of the responses that have lost their end: no end-of-sequence token follows


class Written(NamedTuple):
    """A `Text` in the chat template."""

    prompt: str  # with the generation prompt
    answers: list[str]  # the same followed by each answer, without the end-of-sequence token
    cut: Collection[int]


class Encoded(NamedTuple):
    """A prompt and an answer as token ids."""

    prompt: list[int]  # ends with the template's generation prompt
    completion: list[int]  # ends with the end-of-sequence token, which it holds once; none where its end was cut

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
    [parts] = encode_texts(tokenizer, [Text(prompt)])
    return _sound(parts)[0]


def encode(tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], response: Answer) -> Encoded:
    """Write a conversation and its answer in the chat template.

    What the template itself puts around the answer stays up to its first end-of-sequence token; one is added where it
    has none.

    Raises:
        InputError: the template refuses the conversation or writes a call elsewhere than behind the prompt, or the
            answer's text holds the end-of-sequence token.
    """
    [parts] = encode_texts(tokenizer, [Text(prompt, [response])])
    return Encoded(*_sound(parts))


def as_text(kind: Kind, row: Mapping[str, Any]) -> Text:
    """Give a row's conversation and the answers to it."""
    names, truncated = ANSWERS[kind], row.get("truncated") or {}
    cut = [place for place, name in enumerate(names) if name in truncated]
    return Text(row["prompt"], [row[name] for name in names], cut)


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Text]) -> list[Parts | InputError]:
    """Encode prompts and the answers to each as `encode` does, all in one call of the tokenizer, which is faster.

    Where `encode` would raise an error, it stands in the place of the ids.
    """
    return encode_written(tokenizer, write_texts(tokenizer, texts))


def write_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[Text]) -> list[Written | InputError]:
    """Write prompts and the answers to each in the chat template.

    Where the template refuses one, its error stands in its place.
    """
    with rendering(tokenizer) as render:
        return [_written(tokenizer, render, text) for text in texts]


def encode_written(
    tokenizer: "PreTrainedTokenizerBase", written: Sequence[Written | InputError]
) -> list[Parts | InputError]:
    """Encode what `write_texts` gave, all in one call of the tokenizer."""
    sound = [each for each in written if not isinstance(each, InputError)]
    ids = iter(_ids(tokenizer, [string for each in sound for string in (each.prompt, *each.answers)]))
    return [
        each if isinstance(each, InputError) else _parts(tokenizer, each, list(islice(ids, 1 + len(each.answers))))
        for each in written
    ]


def decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """Turn token ids into text, without special tokens and with its spaces as they are."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def encode_records(tokenizer: "PreTrainedTokenizerBase", kind: Kind, records: Iterable[Record]) -> Iterator[Parts]:
    """Encode prompts and answers of records of one kind, some at a time.

    Raises:
        InputError: naming file and row, where one cannot be encoded.
    """
    waiting = iter(records)
    while some := list(islice(waiting, RECORDS_AT_ONCE)):
        texts = [as_text(kind, record._asdict()) for record in some]
        for record, parts in zip(some, encode_texts(tokenizer, texts), strict=True):
            if isinstance(parts, InputError):
                raise of_record(record, parts)
            yield parts


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", records: Sequence[Prompt], context: int | None, new_tokens: int
) -> list[list[int]]:
    """Encode prompts that leave room for an answer of `new_tokens` in a context of `context` tokens (None: any number).

    Raises:
        InputError: naming file and row, where one cannot be encoded or leaves no such room.
    """
    prompts = [prompt for [prompt] in encode_records(tokenizer, "prompts", records)]
    for record, prompt in zip(records, prompts, strict=True):
        if context is not None and len(prompt) + new_tokens > context:
            raise does_not_fit(record, len(prompt) + new_tokens, context)
    return prompts


def of_record(record: Record, error: InputError) -> InputError:
    """Put the file and row of a record before the sentence of an error."""
    return InputError(f"{record.source} row {record.row}: {error}")


def does_not_fit(record: Record, length: int, context: int) -> InputError:
    """Give the error for a record that is longer than the model's context, both in tokens."""
    cure = "shorten the row, lower validate.max_tokens or max_new_tokens, or take a base model with a longer context"
    sentence = f"prompt and answer need {length} tokens, but the model's context is {context}: {cure}"
    return of_record(record, InputError(sentence))


def _sound(parts: Parts | InputError) -> Parts:
    if isinstance(parts, InputError):
        raise parts
    return parts


def _written(tokenizer: "PreTrainedTokenizerBase", render: Render, text: Text) -> Written | InputError:
    end = str(tokenizer.eos_token)
    try:
        asked = render(text.prompt, generation_prompt=True)
        answers = [
            asked + _answer(render, None if place in text.cut else end, asked, text.prompt, response)
            for place, response in enumerate(text.responses)
        ]
        return Written(asked, answers, text.cut)
    except InputError as error:
        return error


def _parts(tokenizer: "PreTrainedTokenizerBase", written: Written, ids: Parts) -> Parts | InputError:
    prompt, *joints = ids
    parts = [prompt]
    for place, (string, joint) in enumerate(zip(written.answers, joints, strict=True)):
        # A token may span the seam of prompt and answer; generation starts from the prompt's own tokens, so does
        # training.
        continues = joint[: len(prompt)] == prompt
        completion = joint[len(prompt) :] if continues else _ids(tokenizer, [string[len(written.prompt) :]])[0]
        if tokenizer.eos_token_id in completion:
            return InputError(f"the answer holds the control token {tokenizer.eos_token}: remove it or the row")
        parts.append(completion if place in written.cut else [*completion, tokenizer.eos_token_id])
    return parts


def _answer(render: Render, end_of_sequence: str | None, asked: str, prompt: Sequence[Message], answer: Answer) -> str:
    """The text behind the generation prompt, up to the end-of-sequence token; None: up to the end of the response."""
    rendered = render([*prompt, as_answer_message(answer)], generation_prompt=False)
    if not isinstance(answer, str):
        assert end_of_sequence is not None  # a call is never cut
        return _behind(rendered, asked, end_of_sequence, answer)
    response = _without_start(answer, asked)
    start = rendered.find(response.strip(), len(asked))
    if not rendered.startswith(asked) or start < 0:
        return response  # the template rewrites an answered conversation: the bare answer follows the prompt
    end = start + len(response.strip())
    closing = rendered[end:].split(end_of_sequence)[0] if end_of_sequence else ""
    return rendered[len(asked) : end] + closing


def _behind(rendered: str, asked: str, end_of_sequence: str, answer: Message) -> str:
    """All that the template writes of an answer with calls: its form is the template's own."""
    if not rendered.startswith(asked):
        raise RefusedError("writes the tool call of the answer elsewhere than behind the prompt")
    text = rendered[len(asked) :]
    if end_of_sequence in answer_as_text(answer):
        return text  # is refused for it
    return text.split(end_of_sequence)[0]


def _without_start(answer: str, asked: str) -> str:
    """Leave out the start of the reasoning, where the generation prompt has written it."""
    opened = OPENED.search(asked)
    rest = answer
    for mark in MARK.findall(opened[0]) if opened else ():
        begun = rest.lstrip()
        if not begun.startswith(mark):
            return answer
        rest = begun.removeprefix(mark)
    return rest.lstrip() if rest is not answer and asked[-1].isspace() else rest


def _ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> Parts:
    if not texts:
        return []
    # Quiet about length: the template brings its own special tokens, and the context is checked with file and row.
    ids = tokenizer(
        texts, add_special_tokens=False, verbose=False, return_attention_mask=False, return_token_type_ids=False
    )["input_ids"]
    assert isinstance(ids, list)
    return ids
