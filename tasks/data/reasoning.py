"""The answer without the reasoning before it: what rewards, judges, text metrics and people are given.

Token ids and log-probabilities are of the full answer, and so is what models learn from.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from tasks.data.encoding.tokens import Encoded, decode
from tasks.data.records import Prompt
from tasks.settings.base import Reasoning

if TYPE_CHECKING:  # transformers costs seconds to import
    from transformers import PreTrainedTokenizerBase

TAIL = 64  # tokens at a prompt's end that hold what a template may have opened


def without_reasoning(text: str, reasoning: Reasoning | None, *, opened: bool = False) -> str:
    """Take the reasoning out of an answer; where there is none, the text stays as it is.

    Args:
        text: the full answer.
        reasoning: how reasoning begins and ends; None: nothing is taken out.
        opened: the prompt ended within the reasoning, so that the answer begins there.

    Returns:
        The rest, without white space around it; nothing where reasoning does not end, because the limit cut it off.
    """
    if reasoning is None:
        return text
    start, end = reasoning.start, reasoning.end
    begun = text.find(start)
    ended = text.find(end)
    if not opened and begun < 0 and ended < 0:
        return text
    if opened or (ended >= 0 and not 0 <= begun < ended):  # the template wrote the start, or the source left it out
        text = start + text
    rest = re.sub(f"{re.escape(start)}.*?{re.escape(end)}", "", text, flags=re.DOTALL)
    return "" if start in rest else rest.strip()


def answer_text(tokenizer: "PreTrainedTokenizerBase", row: Encoded, reasoning: Reasoning | None) -> str:
    """Give the text of a sampled answer without its reasoning."""
    if reasoning is None:
        return decode(tokenizer, row.completion)
    opened = full_text(tokenizer, row.prompt[-TAIL:], reasoning).rstrip().endswith(reasoning.start)
    return without_reasoning(full_text(tokenizer, row.completion, reasoning), reasoning, opened=opened)


def full_text(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], reasoning: Reasoning | None) -> str:
    """Give the text of ids without special tokens other than the two marks of reasoning."""
    if reasoning is None:
        return decode(tokenizer, ids)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks = {tokenizer.get_vocab().get(mark) for mark in (reasoning.start, reasoning.end)} & special
    names = tokenizer.convert_ids_to_tokens
    parts = [(is_mark, list(part)) for is_mark, part in groupby(ids, marks.__contains__)]
    return "".join("".join(names(part)) if is_mark else decode(tokenizer, part) for is_mark, part in parts)


def references_without_reasoning(prompt: Prompt, reasoning: Reasoning | None) -> Prompt:
    """Give a prompt whose reference answers have no reasoning, to be compared with answers that have none."""
    return prompt._replace(references=[without_reasoning(text, reasoning) for text in prompt.references])
