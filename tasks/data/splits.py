"""Which split a prompt belongs to, and stable names and choices of rows: all by hash of the content.

A hash asks for no state: the rule is the same in every file and every run, whatever else the files hold.
"""

import hashlib
import json
import math

from tasks.data.records import Message, Split
from tasks.settings.params import Split as Shares


def prompt_root(prompt: list[Message]) -> list[Message]:
    """Give the leading messages up to and including the first of the user.

    All turns of one conversation share it, so that a conversation is never spread over two splits.
    """
    for position, message in enumerate(prompt):
        if message["role"] == "user":
            return prompt[: position + 1]
    return prompt


def split_of(prompt: list[Message], shares: Shares) -> Split:
    """Give the split of a prompt: its root's hash, as a number in [0, 1), falls into one of three intervals.

    Prompts that differ in case or white space only go together.
    """
    position = int(root_id(prompt), 16) / 16**16
    if position < shares.test:
        return "test"
    return "validation" if position < shares.test + shares.validation else "train"


def root_id(prompt: list[Message]) -> str:
    """Name the conversation that a prompt is of, whatever the case and white space of its root."""
    return content_id(
        [[message["role"], " ".join(message["content"].casefold().split())] for message in prompt_root(prompt)]
    )


def content_id(content: object) -> str:
    """Name JSON content by the first 64 bits of its sha256: the same content, the same name, in every run."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def prompts_needed(share: float) -> int:
    """Count the distinct prompts with which a split of this share is empty in at most one case of a hundred.

    With n prompts it is empty with probability (1 - share)^n.
    """
    return math.ceil(math.log(0.01) / math.log(1 - share))
