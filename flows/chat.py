"""Chatting with a model: of a stage, or a version in the registry."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.common.errors import InputError
from tasks.common.escapes import visible
from tasks.common.files import MODELS
from tasks.data.encoding.tokens import decode, encode_prompt, load_tokenizer
from tasks.data.records import Message
from tasks.methods import STAGES as ALIGNING
from tasks.registry.dvc_outputs.contents import check_outputs
from tasks.registry.serving.versions import weights
from tasks.settings.params import Params

if TYPE_CHECKING:
    from torch import nn
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

STAGES = ("base", "sft", *ALIGNING)


class Conversation:
    """The messages so far, and the model that answers."""

    def __init__(self, model: "nn.Module", tokenizer: "PreTrainedTokenizerBase", params: Params) -> None:
        """Start without messages."""
        self.messages: list[Message] = []
        self._model, self._tokenizer, self._params = model, tokenizer, params

    def ask(self, text: str) -> str:
        """Add the user's message and return the model's answer; a message that cannot be answered is not added.

        Raises:
            InputError: the conversation and its answer are longer than the model's context.
        """
        from tasks.learning.sampling.sampler import generate

        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        settings = self._params.evaluate
        [response] = generate(
            self._model,
            self._tokenizer,
            [encode_prompt(self._tokenizer, asked)],
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=self._params.seed + len(asked),
            max_concurrent_sequences=1,
        )
        answer = decode(self._tokenizer, response.row.completion).strip()
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer


def begin(folder: Path, params: Params) -> Conversation:
    """Load a model and start a conversation."""
    from tasks.learning.models.loading import load_policy, set_up

    set_up(params)
    return Conversation(load_policy(folder, params, trainable=False), load_tokenizer(folder), params)


def stage_folder(stage: str) -> Path:
    """Return the folder of a stage's model.

    Raises:
        InputError: no such stage has a model to talk to, it has not run, or the model is damaged.
    """
    if stage not in STAGES:
        raise InputError(f"{stage} has no model to talk to: choose one of {', '.join(STAGES)}")
    if not (MODELS / stage).is_dir():
        raise InputError(f"{MODELS / stage} does not exist: run the stage that writes it (trueline run)")
    check_outputs(stage, MODELS / stage)
    return MODELS / stage


def version_folder(version: str, params: Params) -> Path:
    """Restore a registered policy from DVC's cache or remote.

    Raises:
        InputError: there is no such version or alias, or its weights are nowhere, or damaged.
    """
    from tasks.registry.lineage.explain import why

    return weights(why(params, version)["policy"]["md5"], f"version {version}")


def talk(conversation: Conversation) -> None:
    """Answer line by line until the input ends or is /exit; /new starts a new conversation."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("Type a message. /new starts over, /exit ends.", file=sys.stderr)
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/exit":
            return
        if line.strip() == "/new":
            conversation.messages = []
        elif line.strip():
            _answer(conversation, line.strip())


def _answer(conversation: Conversation, text: str) -> None:
    try:
        print(visible(conversation.ask(text)), flush=True)
    except InputError as error:
        if not sys.stdin.isatty():
            raise
        print(f"{error} (/new starts over)", file=sys.stderr)
