"""Reads a local model folder, a hub model or the built-in example, writes models/base and metrics/base.json."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from tasks.common.errors import InputError
from tasks.common.files import METRICS, MODELS, replacing, write_json
from tasks.common.yaml_files import read_yaml
from tasks.data import example
from tasks.data.base_model.architecture import check_model
from tasks.data.base_model.model_files import FETCHED, NOT_FETCHED, copy_model
from tasks.data.base_model.tokenizers import PAD, settle_tokenizer, try_rows
from tasks.data.base_model.weights import count_parameters
from tasks.data.encoding.context import usable_context
from tasks.data.encoding.templates import TEMPLATES, TURN_END, TURN_START
from tasks.settings.params import EXAMPLE, Example, Params, Scratch
from tasks.settings.section import Section
from tasks.stage import main

if TYPE_CHECKING:  # transformers costs seconds to import: only the functions that need it pay
    from transformers import PreTrainedTokenizerBase

Kind = Literal["scratch", "folder", "hub"]

# Demonstrations whose text the tokenizer of the model from scratch is trained on.
TOKENIZER_ROWS = 2000


class Pointer(Section):
    """A hub model at an exact commit."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


def base(params: Params) -> None:
    """Fix the exact bytes of the base model, with the tokenizer, chat template and padding token every stage uses.

    Raises:
        InputError: the source is missing or is not a model the pipeline can train safely; the sentence has the cure.
    """
    with replacing(MODELS / "base") as draft:
        kind = _obtain(params, draft)
        check_model(draft, params.base.source)
        settle_tokenizer(draft, params.base)
        try_rows(draft, params.base.source)
        metrics = _measure(draft, kind)
    write_json(METRICS / "base.json", metrics)


def _obtain(params: Params, draft: Path) -> Kind:
    """Bring the model's files into `draft`, and say where they came from."""
    source = Path(params.base.source)
    if params.base.source == EXAMPLE:
        make_scratch(params.base.scratch, params.seed, draft)
        return "scratch"
    if source.suffix in (".yaml", ".yml"):
        copy_model(_download(read_pointer(source)), draft, params.base.source)
        return "hub"
    if not source.is_dir():
        raise InputError(f"base.source {source} is no folder: give a model folder, a .yaml hub pointer or {EXAMPLE}")
    copy_model(source, draft, params.base.source)
    return "folder"


# --- From scratch


def make_scratch(shape: Scratch, seed: int, folder: Path) -> None:
    """Save a randomly initialised Llama and a tokenizer trained on the built-in example; same seed, same bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(shape, seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=math.ceil(shape.hidden_size * 8 / 3 / 16) * 16,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        # Untied, a model this small learns to copy an order number in half the steps.
        tie_word_embeddings=False,
        # Narrow layers need larger weights than the default .02 to pass a signal on at the start.
        initializer_range=0.5 * shape.hidden_size**-0.5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(shape: Scratch, seed: int) -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE tokenizer, digits one by one so that a model can copy numbers, on the example's text.

    Raises:
        InputError: the text has too few words for the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocabulary,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_tokenizer_text(seed), trainer)
    if bpe.get_vocab_size() < shape.vocabulary:
        raise InputError(
            f"params.yaml: base.scratch.vocabulary is {shape.vocabulary}, but the built-in example's text"
            f" gives only {bpe.get_vocab_size()} tokens: lower it"
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=TURN_END,
        extra_special_tokens=[TURN_START],
        chat_template=TEMPLATES["chatml"],
        model_max_length=shape.context,
    )


def _tokenizer_text(seed: int) -> Iterator[str]:
    """Text of the example from a stream of its own, with the roles as the chat template writes them."""
    settings = Example(demonstrations=TOKENIZER_ROWS, preferences=1, prompts=1, faulty=0.5, label_noise=0.0)
    for row in example.demonstrations(settings, f"{seed} tokenizer"):
        yield f"user\n{row['prompt']}"
        yield f"assistant\n{row['response']}"


# --- From a folder or from the hub


def read_pointer(path: Path) -> Pointer:
    """Read a .yaml that names a hub model.

    Raises:
        InputError: the file is missing, or does not hold a hub id and a full commit hash.
    """
    cure = "it needs hub: organisation/name and revision: the full commit hash of 40 hexadecimal digits"
    try:
        return Pointer.model_validate(read_yaml(path))
    except FileNotFoundError:
        raise InputError(f"base.source {path} does not exist: write it; {cure}") from None
    except ValidationError:
        raise InputError(f"{path} names no hub model: {cure}") from None


def _download(pointer: Pointer) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"{pointer.hub} at {pointer.revision}"
    try:
        return Path(
            snapshot_download(
                pointer.hub, revision=pointer.revision, allow_patterns=list(FETCHED), ignore_patterns=list(NOT_FETCHED)
            )
        )
    except LocalEntryNotFoundError:  # neither in the local cache nor reachable
        if constants.HF_HUB_OFFLINE:
            raise InputError(f"{name} is not in the local cache: unset HF_HUB_OFFLINE, or give a folder") from None
        raise ConnectionError(f"the Hugging Face hub cannot be reached for {name}") from None
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"the hub refuses {name} ({reason}): mend its name or revision, or log in") from None


def _measure(folder: Path, kind: Kind) -> dict[str, Any]:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    text = config.get_text_config()
    return {
        "source": kind,
        "family": text.model_type,
        "parameters": count_parameters(folder, "models/base"),
        "vocabulary": text.vocab_size,
        "context": usable_context(config),
    }


if __name__ == "__main__":
    main(base)
