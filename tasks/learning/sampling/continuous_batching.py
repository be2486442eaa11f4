"""Sampling by transformers' continuous batching: its scheduler and paged cache in the place of our own loop.

What our loop promises of an answer does not all hold here: see `generate`.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import GenerationOutput
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import Encoded
from tasks.learning.models.forward import compute_device, compute_dtype, is_packed, layers_as_written, unwrapped
from tasks.learning.models.precision import round_layer
from tasks.learning.sampling.copies import sampling_copy
from tasks.learning.sampling.sampler import Response, check_context, stop_tokens

PAGE = 32  # tokens of one sequence that lie together in the cache
PROMPT_TOKENS = 256  # read in one forward pass, beside a token of every answer under way
ATTENTION = "sdpa"  # in the place of ours, which continuous batching does not know


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    max_concurrent_sequences: int,
    indices: Sequence[int] | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> list[Response]:
    """Answer prompts by sampling, a pure function of its arguments: those of `sampler.generate`, which see.

    Unlike there, all answers draw on one stream of random numbers: an answer depends on the others that are sampled
    with it, so on `max_concurrent_sequences` and `indices`. Log-probabilities are given, entropies are not.

    Raises:
        InputError: a prompt and its response do not fit the model's context, or the model cannot be served.
    """
    check_context(model, prompts, max_new_tokens)
    wanted = range(len(prompts)) if indices is None else sorted(indices)
    if not wanted:
        return []
    asked, body = [list(prompts[number]) for number in wanted], _body(model)
    drawing = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_k=0,
        top_p=1.0,
        eos_token_id=stop_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    # Everything that is otherwise found out from the memory that happens to be free, which would change the batches.
    pages = -(-(max(map(len, asked)) + max_new_tokens) // PAGE)
    batching = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=max_concurrent_sequences * pages,
        max_batch_tokens=max_concurrent_sequences + PROMPT_TOKENS,
        max_requests_per_batch=max_concurrent_sequences,
        max_blocks_per_request=0,
        use_async_batching=False,
        use_cuda_graph=False,
        auto_switch_to_flash=False,
        return_logprobs=True,
        seed=seed + wanted[0],  # several processes answer other prompts, by other numbers
    )
    device = compute_device(body)
    with _prepared(body), _older_objects_left_alone():
        found = _answers(_manager(body, drawing, batching), asked, max_new_tokens, on_progress)
    return [
        Response(Encoded(prompt, answer.generated_tokens), torch.tensor(answer.logprobs, device=device), None)
        for prompt, answer in zip(asked, found, strict=True)
    ]


def _body(model: nn.Module) -> PreTrainedModel:
    """Give what is sampled from: in bf16 a copy that lies there whole, for autocast does not reach another thread."""
    body = unwrapped(sampling_copy(model))
    if compute_dtype(model) != torch.float32:
        for module in body.modules():
            round_layer(module, compute_dtype(model))
    return body


@contextmanager
def _prepared(body: PreTrainedModel) -> Iterator[None]:
    """Give the model an attention that continuous batching knows; leave it, and torch's random state, as they were."""
    before = body.config._attn_implementation
    device = compute_device(body)
    with layers_as_written(body), torch.random.fork_rng([device] if device.type == "cuda" else []):
        if is_packed(body):
            body.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            body.set_attn_implementation(before)


@contextmanager
def _older_objects_left_alone() -> Iterator[None]:
    """Have garbage collection look at what is made inside the block: the manager runs it in full, twice, as it stops.

    That takes a second each in a process that has loaded all libraries.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _manager(
    body: PreTrainedModel, drawing: GenerationConfig, batching: ContinuousBatchingConfig
) -> ContinuousBatchingManager:
    manager: ContinuousBatchingManager
    try:
        manager = body.init_continuous_batching(drawing, batching)  # type: ignore[operator]
    except ValueError as error:  # the family's attention is not one that it knows
        raise _failure(error) from None
    return manager


def _failure(reason: object) -> InputError:
    return InputError(f"transformers' continuous batching failed ({reason}): set ppo.engine to builtin")


def _answers(
    manager: ContinuousBatchingManager,
    asked: list[list[int]],
    max_new_tokens: int,
    on_progress: Callable[[int], object] | None,
) -> list[GenerationOutput]:
    """Run the manager, whose work is done by a thread of its own, until all that was asked is answered."""
    # Queued before the thread starts: which prompts share its first batch must not hang on which thread is quicker.
    names = manager.add_requests(asked, max_new_tokens=max_new_tokens)
    found: dict[str, GenerationOutput] = {}
    manager.start()
    try:
        while len(found) < len(names):
            answer = manager.get_result(timeout=1)
            if answer is None and manager.is_running():
                continue
            if answer is None or answer.error is not None:
                raise _failure("its thread ended" if answer is None else answer.error)
            found[answer.request_id] = answer
            if on_progress is not None:
                on_progress(1)
    finally:
        manager.stop(hard_stop=len(found) < len(names))
        manager.destroy()
    return [found[name] for name in names]
