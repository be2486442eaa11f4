"""A small Llama with random weights, and a tokenizer trained on the text that a Python file yields."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.common.errors import InputError
from tasks.common.python_files import errors_of, load_function
from tasks.data.base_model.templates import TEMPLATES, TURN_END, TURN_START
from tasks.data.base_model.tokenizers import PAD
from tasks.settings.params import Scratch

if TYPE_CHECKING:  # transformers costs seconds to import: only the functions that need it pay
    from transformers import PreTrainedTokenizerBase

TEXT = "tokenizer_text"  # the function that is called with `seed`


def make_scratch(source: Path, shape: Scratch, seed: int, folder: Path) -> None:
    """Save a randomly initialised Llama and a tokenizer trained on a Python file's text; same seed, same bytes.

    Raises:
        InputError: the file has no function `tokenizer_text`, it fails, or the vocabulary wants more text.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer(source, shape, seed)
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


def train_tokenizer(source: Path, shape: Scratch, seed: int) -> "PreTrainedTokenizerBase":
    """Train a byte-level BPE tokenizer, digits one by one so that a model can copy numbers.

    Args:
        source: the Python file whose function `tokenizer_text` yields the text.
        shape: with the size of the vocabulary and the longest sequence, in tokens.
        seed: what the function is called with.

    Raises:
        InputError: the file has no such function, it fails, or its text has too few words for the vocabulary.
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
    function = load_function(source, TEXT)
    with errors_of(source, f"{source}:{TEXT}", "fix it"):
        text = list(function(seed=seed))
    if not all(isinstance(part, str) for part in text):
        raise InputError(f"{source}:{TEXT} yields what is no text: have it yield texts alone")
    bpe.train_from_iterator(text, trainer)
    if bpe.get_vocab_size() < shape.vocabulary:
        raise InputError(
            f"params.yaml: base.scratch.vocabulary is {shape.vocabulary}, but the text of {source} gives only "
            f"{bpe.get_vocab_size()} tokens: lower it"
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=TURN_END,
        extra_special_tokens=[TURN_START],
        chat_template=TEMPLATES["chatml"],
        model_max_length=shape.context,
    )
