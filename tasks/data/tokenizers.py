"""The base model's tokenizer: its chat template and padding token, which every later stage uses."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.data.files import read_json, write_json
from tasks.errors import InputError
from tasks.params import Base

if TYPE_CHECKING:  # transformers costs seconds to import: only the functions that need it pay
    from transformers import PreTrainedTokenizerBase

PAD, TURN_START, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
# A chat template that asks for the time, and what it gets.
CLOCK, DATE = re.compile(r"strftime_now\([^()]*\)"), "01 Jan 2026"
TEMPLATES = {
    "chatml": "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "plain": "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}",
}


def settle_tokenizer(folder: Path, settings: Base) -> None:
    """Give a model folder's tokenizer the chat template and padding token of the settings where it needs them.

    Raises:
        InputError: the tokenizer does not load, lacks something, or does not fit the model; the sentence has the cure.
    """
    from transformers import AutoConfig, AutoTokenizer

    name = settings.source
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name}: its tokenizer does not load ({reason}): save it again") from None
    if tokenizer.eos_token is None:
        raise InputError(f"{name}: its tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
    room = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().vocab_size
    if len(tokenizer) > room:
        raise InputError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens, but the model's embedding only {room} rows:"
            " use the tokenizer the model was trained with"
        )
    template = tokenizer.chat_template
    _settle_template(tokenizer, settings)
    _settle_pad(tokenizer, settings)
    check_template(tokenizer, name)
    if tokenizer.chat_template != template or settings.pad_token is not None:  # else the bytes stay as they came
        tokenizer.save_pretrained(folder)
    if settings.pad_token is not None:
        _write_pad_id(folder, tokenizer.pad_token_id)


def _settle_template(tokenizer: "PreTrainedTokenizerBase", settings: Base) -> None:
    if tokenizer.chat_template:
        if settings.chat_template is not None:
            raise InputError(f"{settings.source} brings its own chat template: set base.chat_template to null")
        # Some templates write today's date: the same rows would have other tokens tomorrow.
        if isinstance(tokenizer.chat_template, str):
            tokenizer.chat_template = CLOCK.sub(f'"{DATE}"', tokenizer.chat_template)
        return
    if settings.chat_template is None:
        raise InputError(f"{settings.source} has no chat template: set base.chat_template: chatml, plain or a file")
    tokenizer.chat_template = _read_template(settings.chat_template)
    vocabulary = tokenizer.get_vocab()
    if settings.chat_template == "chatml" and not {TURN_START, TURN_END} <= vocabulary.keys():
        raise InputError(f"{settings.source}: its vocabulary lacks {TURN_START}: set base.chat_template: plain")


def _read_template(choice: str) -> str:
    if choice in TEMPLATES:
        return TEMPLATES[choice]
    try:
        return Path(choice).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError):
        raise InputError(f"base.chat_template {choice} is no text file: give chatml, plain or a Jinja file") from None


def _settle_pad(tokenizer: "PreTrainedTokenizerBase", settings: Base) -> None:
    if settings.pad_token is not None:
        if settings.pad_token not in tokenizer.get_vocab():
            raise InputError(f"base.pad_token {settings.pad_token} is not in the vocabulary: name a token that is")
        tokenizer.pad_token = settings.pad_token
    elif tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        fault = "has no padding token" if tokenizer.pad_token is None else "pads with its end-of-sequence token"
        spare = next(iter(_spare_tokens(tokenizer)), tokenizer.eos_token)
        raise InputError(f"{settings.source}: its tokenizer {fault}: name one, as in base.pad_token: '{spare}'")


def _spare_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Special tokens that could pad, the likeliest first."""
    taken = (tokenizer.eos_token, tokenizer.bos_token, TURN_START, TURN_END)
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(special.difference(taken), key=lambda token: (not re.search("pad|unk|endoftext", token), token))


def check_template(tokenizer: "PreTrainedTokenizerBase", name: str) -> None:
    """Check that the chat template writes a conversation, and an answer behind the prompt it writes for generation.

    Raises:
        InputError: it raises, loses the answer, or writes another beginning once there is an answer.
    """
    from jinja2 import TemplateError

    asked = [{"role": "user", "content": "One question."}]
    answered = [*asked, {"role": "assistant", "content": "One answer."}]
    try:
        prompt = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(answered, tokenize=False))
    except (TemplateError, TypeError, ValueError) as error:
        raise InputError(f"{name}: its chat template raises ({error}): mend it or set base.chat_template") from None
    if "One question." not in prompt or not whole.startswith(prompt) or "One answer." not in whole[len(prompt) :]:
        raise InputError(f"{name}: its chat template does not write the answer behind the prompt: mend the template")


def _write_pad_id(folder: Path, pad_id: int) -> None:
    """Training masks by position, so that even a padding token equal to end-of-sequence is safe there."""
    for path in (folder / "config.json", folder / "generation_config.json"):
        if path.exists():
            write_json(path, read_json(path) | {"pad_token_id": pad_id})
