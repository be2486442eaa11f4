"""The base model's tokenizer: its chat template and padding token, which every later stage uses."""

import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.common.errors import InputError
from tasks.common.files import read_json, replacing
from tasks.data.base_model.templates import TURN_END, TURN_START, choose_template, try_template
from tasks.data.encoding.tokens import encode, load_tokenizer
from tasks.settings.params import Base

if TYPE_CHECKING:  # transformers costs seconds to import: only the functions that need it pay
    from transformers import PreTrainedTokenizerBase

PAD = "<|pad|>"
LONGEST_REASON = 200  # characters of what a library says
logger = logging.getLogger(__name__)


def resolve_tokenizer(folder: Path, settings: Base) -> None:
    """Give a model folder's tokenizer the chat template and padding token of the settings where it needs them.

    Raises:
        InputError: the tokenizer does not load, lacks something, or does not fit the model; the sentence has the cure.
    """
    from transformers import AutoConfig, AutoTokenizer

    name = settings.source
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of any type: tokenizers raises bare ones
        raise InputError(f"{name}: its tokenizer does not load ({_reason(error)}): save it again") from None
    if tokenizer.eos_token is None:
        raise InputError(f"{name}: its tokenizer has no end-of-sequence token: set eos_token in tokenizer_config.json")
    room = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config().vocab_size
    if len(tokenizer) > room:
        raise InputError(
            f"{name}: its tokenizer has {len(tokenizer)} tokens, but the model's embedding only {room} rows:"
            " use the tokenizer the model was trained with"
        )
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= room:
        raise InputError(
            f"{name}: its tokenizer gives the id {largest}, but the model's embedding has only {room} rows, from 0 on:"
            " use the tokenizer the model was trained with"
        )
    template = tokenizer.chat_template
    choose_template(tokenizer, settings.chat_template, settings.template_arguments, name)
    _set_pad_token(tokenizer, settings)
    troubles = try_template(tokenizer, name)
    if troubles:
        logger.warning("%s: its chat template %s: rows like that go to quarantine", name, ", ".join(troubles))
    if tokenizer.chat_template != template or settings.pad_token is not None:  # else the bytes stay as they came
        tokenizer.save_pretrained(folder)
    if settings.chat_template is not None:
        (folder / "chat_template.json").unlink(missing_ok=True)  # the model's own in an older format
    if settings.pad_token is not None:
        _write_pad_id(folder, tokenizer.pad_token_id)


def try_rows(folder: Path, name: str) -> None:
    """Write a row in tokens as later stages will, by the tokenizer that has been resolved.

    Raises:
        InputError: that does not work; some values of tokenizer_config.json are first looked at then.
    """
    try:
        encode(load_tokenizer(folder), [{"role": "user", "content": "One question."}], "One answer.")
    except InputError:
        raise
    except Exception as error:  # of any type
        raise InputError(f"{name}: its tokenizer writes no rows ({_reason(error)}): save it again") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__


def _set_pad_token(tokenizer: "PreTrainedTokenizerBase", settings: Base) -> None:
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


def _write_pad_id(folder: Path, pad_id: int) -> None:
    """Training masks by position, so that even a padding token equal to end-of-sequence is safe there."""
    for path in (folder / "config.json", folder / "generation_config.json"):
        if path.exists():
            settings = read_json(path) | {"pad_token_id": pad_id}
            with replacing(path) as draft:  # not write_json: the settings of some families hold Infinity
                draft.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
