"""Prompts as token ids, and the room that they leave for an answer."""

from typing import TYPE_CHECKING, Any

from flows.serving.backends import Question
from flows.serving.errors import RequestError
from tasks.data.encoding.rendering import in_short
from tasks.data.encoding.tokens import Written, encode_written

if TYPE_CHECKING:  # transformers costs seconds to import
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


def encoded(tokenizer: "PreTrainedTokenizerBase", question: Question) -> list[int]:
    """Write a conversation in the chat template, up to where the assistant is to answer, as `encode_prompt` does.

    Without its limit of memory, which is one of the whole process: here others load models meanwhile, and the template
    has passed every row of the data under it.

    Raises:
        RequestError: the template refuses the conversation.
    """
    messages: list[Any] = [dict(message) for message in question.messages]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever a template can do wrong
        raise RequestError(
            400, f"the chat template refuses the conversation ({in_short(error)})", param="messages"
        ) from None
    [parts] = encode_written(tokenizer, [Written(str(text), [], ())])
    assert isinstance(parts, list)
    return parts[0]


def answer_length(prompt: int, question: Question, context: int | None, max_prompt_tokens: int | None) -> int:
    """Choose the tokens of the longest answer to a prompt.

    Args:
        prompt: its tokens.
        question: what is asked.
        context: most tokens of prompt and answer together; None: any number.
        max_prompt_tokens: the server's limit; None: there is none but the context.

    Raises:
        RequestError: prompt and answer do not fit.
    """
    if max_prompt_tokens is not None and prompt > max_prompt_tokens:
        raise _too_long(prompt, max_prompt_tokens, "the limit here")
    if context is None:
        return question.max_tokens
    room = context - prompt
    if room < 1:
        raise _too_long(prompt, context, "the model's context")
    if question.is_max_tokens_given and question.max_tokens > room:
        raise RequestError(
            400,
            f"a prompt of {prompt} tokens and an answer of {question.max_tokens} exceed the model's context of "
            f"{context}: lower max_tokens",
            code="context_length_exceeded",
            param="max_tokens",
        )
    return min(question.max_tokens, room)


def _too_long(prompt: int, limit: int, what: str) -> RequestError:
    return RequestError(
        400,
        f"the prompt has {prompt} tokens, and {what} is {limit}: shorten the conversation",
        code="context_length_exceeded",
        param="messages",
    )
