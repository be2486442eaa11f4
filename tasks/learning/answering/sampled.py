"""What a policy answers to the prompts of an evaluation."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.progress import Bar
from tasks.data.encoding.tokens import Encoded, decode, encode, encode_prompts
from tasks.data.reasoning import answer_text
from tasks.data.records import Prompt
from tasks.learning import processes
from tasks.learning.models.loading import context_length
from tasks.learning.sampling.engines import answer_in_shares
from tasks.learning.sampling.sampler import generate, stop_tokens
from tasks.settings.params import Params


class Sampled(NamedTuple):
    """Answers of a policy to n prompts, in their order."""

    encoded: list[Encoded]  # prompt and answer as sampled
    texts: list[str]  # without reasoning
    full_texts: list[str]
    ended: list[bool]  # by the policy itself, before the limit

    @property
    def lengths(self) -> list[int]:
        """The tokens of each answer, the end of sequence included."""
        return [len(row.completion) for row in self.encoded]


def answer(
    name: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: Params,
    *,
    per_prompt: int = 1,
) -> Sampled:
    """Have a policy answer every prompt, `per_prompt` times side by side; `name` is that of the progress bar.

    Raises:
        InputError: a prompt leaves no room for an answer.
    """
    settings = params.evaluate
    encoded = encode_prompts(tokenizer, prompts, context_length(policy), settings.max_new_tokens)
    asked = [prompt for prompt in encoded for _ in range(per_prompt)]
    answers = sample(name, policy, tokenizer, asked, temperature=settings.temperature, params=params)
    return as_sampled(policy, tokenizer, asked, answers, params)


def sample(
    name: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Sequence[int]],
    *,
    temperature: float,
    params: Params,
) -> list[list[int]]:
    """Sample the tokens of an answer to every encoded prompt; at temperature 0 they are the likeliest.

    Every process answers a share, with the random numbers that a prompt has by its place.
    """
    with Bar(f"evaluate: {name}", math.ceil(len(asked) / processes.world_size()), "answer") as bar:
        ask = partial(
            generate,
            tokenizer=tokenizer,
            prompts=asked,
            max_new_tokens=params.evaluate.max_new_tokens,
            temperature=temperature,
            seed=params.seed,
            max_concurrent_sequences=params.runtime.max_concurrent_sequences,
            on_progress=bar.update,
        )
        responses = answer_in_shares(ask, policy, asked)
    return [response.row.completion for response in responses]


def as_sampled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[list[int]],
    answers: Sequence[list[int]],
    params: Params,
) -> Sampled:
    """Put tokens and texts together; the stop tokens of `model` say which answers ended."""
    stops = stop_tokens(model, tokenizer)
    rows = [Encoded(*pair) for pair in zip(asked, answers, strict=True)]
    return Sampled(
        rows,
        [answer_text(tokenizer, row, params.base.reasoning) for row in rows],
        [decode(tokenizer, tokens) for tokens in answers],
        [tokens[-1] in stops for tokens in answers],
    )


def in_tokens_of(tokenizer: PreTrainedTokenizerBase, sampled: Sampled, prompts: Sequence[Prompt]) -> Sampled:
    """Encode the answers of a policy with another tokenizer; one that did not end gets no end-of-sequence token."""
    # To the policy that wrote it this token was a text like any other; here it ends the answer.
    texts = [text.split(str(tokenizer.eos_token))[0] for text in sampled.full_texts]
    encoded = [encode(tokenizer, prompt.prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    without_end = [
        row if ended else row._replace(completion=row.completion[:-1])
        for row, ended in zip(encoded, sampled.ended, strict=True)
    ]
    return sampled._replace(encoded=without_end)
