"""What a pass of a model needs beside its weights: it is run on a model without data, and what it makes is counted.

Layers are alike, so two shallow models are run, and what a layer more takes is added for each that the model has more:
in each phase of a pass, for which of them needs most may change with the layers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import Encoded, EncodedPair
from tasks.learning.batches import Batch, collate, collate_pairs
from tasks.learning.memory.live_bytes import LiveBytes
from tasks.learning.memory.unloaded import Kind, faked, unloaded_model
from tasks.learning.models.attention import PACKED, attend
from tasks.learning.models.forward import layers_as_written, unwrapped
from tasks.learning.models.outputs import completion_log_probs, completion_scores, completion_values
from tasks.learning.models.varlen import HEAD_STEP, WIDEST_HEAD, attend_at_once
from tasks.learning.sampling.copies import sampling_copy
from tasks.learning.sampling.kv_cache import RaggedCache
from tasks.learning.sampling.sampler import COMPACT_AT, sample
from tasks.settings.params import Params

Output = Literal["log_probs", "scores", "values"]  # what is read off a model
OUTPUTS: dict[Output, Callable[[nn.Module, Batch], Tensor]] = {
    "log_probs": completion_log_probs,
    "scores": completion_scores,
    "values": completion_values,
}
SHALLOW, LESS_SHALLOW = 1, 2  # layers of the models that are run
MOST_ROWS = 4  # that are run: memory goes with the tokens, so rows are as long as several


class Rows(NamedTuple):
    """The rows of a micro-batch."""

    prompt: int  # tokens
    answer: int
    number: int  # of rows or pairs
    are_pairs: bool = False

    def batch(self) -> Batch:
        """Lay them out."""
        joined = -(-self.number // MOST_ROWS)
        prompts = [
            [number] * (joined * self.prompt) for number in range(self.number // joined)
        ]  # shared in pairs alone
        rows = [Encoded(prompt, [0] * (joined * self.answer)) for prompt in prompts]
        return collate_pairs([EncodedPair(row, row) for row in rows]) if self.are_pairs else collate(rows)


class SamplingBytes(NamedTuple):
    """The most that sampling needs beside the weights of the model that is sampled from."""

    all: int
    cache: int  # of it: keys and values


class PassCounter:
    """Counts what passes of one model need; the same pass is run once."""

    def __init__(self, config: PreTrainedConfig, *, on_gpu: bool = False) -> None:
        """Count for a model of this configuration, on a GPU or a CPU."""
        self._config, self._on_gpu = config, on_gpu
        self._layers: int = config.get_text_config().num_hidden_layers
        self._known: dict[object, tuple[float, ...]] = {}

    def training(self, kind: Kind, params: Params, output: Output, rows: Rows) -> int:
        """Count a forward and a backward pass over a micro-batch, beside the gradients of those before."""
        work = partial(_train, output=output, rows=rows)
        return int(max(self._count(kind, params, ("training", output, rows), work, True)))

    def reading(self, kind: Kind, params: Params, output: Output, rows: Rows, *, trainable: bool) -> int:
        """Count a forward pass without gradients."""
        found = self._count(
            kind, params, ("reading", output, rows, trainable), partial(_read, output=output, rows=rows), trainable
        )
        return int(max(found))

    def sampling(self, params: Params, prompt: int, answer: int, count: int, *, trainable: bool) -> SamplingBytes:
        """Count the sampling of `count` answers side by side."""
        work = partial(_sample, prompt=prompt, answer=answer, count=count)  # of the copy that is sampled from
        cache, *phases = self._count("policy", params, ("sampling", prompt, answer, count, trainable), work, trainable)
        return SamplingBytes(int(max(phases)), int(cache))

    def _count(
        self,
        kind: Kind,
        params: Params,
        key: tuple[object, ...],
        work: Callable[[nn.Module], tuple[float, ...]],
        trainable: bool,
    ) -> tuple[float, ...]:
        """Run some work on shallow models, and give its figures for one with all layers."""
        runtime = params.runtime
        known = (
            kind,
            key,
            runtime.precision,
            runtime.weights,
            runtime.gradient_checkpointing,
            params.lora.model_dump_json(),
        )
        if known not in self._known:
            depths = sorted({min(self._layers, SHALLOW), min(self._layers, LESS_SHALLOW)})
            models = [self._model(kind, params, trainable, depth, is_sampled=key[0] == "sampling") for depth in depths]
            with self._attention(params):
                figures = [work(model) for model in models]
            further = self._layers - depths[-1]  # each of which takes as much as the second of the two
            self._known[known] = tuple(
                deep + further * (deep - shallow) for shallow, deep in zip(figures[0], figures[-1], strict=True)
            )
        return self._known[known]

    def _model(self, kind: Kind, params: Params, trainable: bool, layers: int, *, is_sampled: bool) -> nn.Module:
        model = unloaded_model(self._config, kind, params, trainable=trainable, layers=layers)
        return faked(sampling_copy(model) if is_sampled else model)

    @contextmanager
    def _attention(self, params: Params) -> Iterator[None]:
        """Have packed rows attended to as the device would."""
        text = self._config.get_text_config()
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        in_one_call = params.runtime.precision == "bf16" and width <= WIDEST_HEAD and width % HEAD_STEP == 0
        if self._on_gpu and in_one_call:
            AttentionInterface.register(PACKED, _attend_as_on_gpu)
        try:
            yield
        finally:
            AttentionInterface.register(PACKED, attend)


class NoPasses(PassCounter):
    """Counts nothing: where what lies between passes is asked for alone."""

    def training(self, kind: Kind, params: Params, output: Output, rows: Rows) -> int:
        """Nothing."""
        return 0

    def reading(self, kind: Kind, params: Params, output: Output, rows: Rows, *, trainable: bool) -> int:
        """Nothing."""
        return 0

    def sampling(self, params: Params, prompt: int, answer: int, count: int, *, trainable: bool) -> SamplingBytes:
        """Nothing."""
        return SamplingBytes(0, 0)


@contextmanager
def _counted(model: nn.Module, others: Sequence[Tensor] = ()) -> Iterator[LiveBytes]:
    counter = LiveBytes([*model.parameters(), *model.buffers(), *others])
    try:
        with counter:
            yield counter
    except NotImplementedError as error:
        kind = unwrapped(model).config.model_type
        raise InputError(f"what models of type {kind} need cannot be counted ({error})") from None


@contextmanager
def _layers_ending_a_phase(model: nn.Module, counter: LiveBytes) -> Iterator[None]:
    """Let another phase begin whenever the last layer has run: autocast frees its copies there, and the head begins."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_hook(lambda *_: counter.begin_phase()) for layer in layers[-1:]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _train(model: nn.Module, *, output: Output, rows: Rows) -> tuple[float, ...]:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.empty_like(weight)
    gradients = [weight.grad for weight in trained if weight.grad is not None]
    with _counted(model, gradients) as counter:
        with _layers_ending_a_phase(model, counter):
            loss = OUTPUTS[output](model, rows.batch()).sum()
        counter.begin_phase()
        loss.backward()  # type: ignore[no-untyped-call]
    return (*counter.peaks,)


def _read(model: nn.Module, *, output: Output, rows: Rows) -> tuple[float, ...]:
    batch = rows.batch()
    with torch.no_grad(), _counted(model) as counter, _layers_ending_a_phase(model, counter):
        OUTPUTS[output](model, batch)
    return (*counter.peaks,)


def _sample(model: nn.Module, *, prompt: int, answer: int, count: int) -> tuple[float, ...]:
    """Read prompts, draw a token, read it, and drop finished answers as late as the sampler does."""
    packing = collate([Encoded([number] * prompt, []) for number in range(count)]).packing
    rows, noise = torch.arange(count), torch.rand(count, dtype=torch.float64)
    with torch.no_grad(), layers_as_written(model), _counted(model) as counter, _layers_ending_a_phase(model, counter):
        cache = RaggedCache(count, prompt + answer, rows.device)
        logits = cache.read_prompts(model, packing, torch.full((count,), prompt), rows)
        tokens = sample(logits, noise, 1.0).tokens
        del logits
        counter.begin_phase()
        cache.lengths[:] = prompt + answer - 1  # as wide as it gets
        sample(cache.read_tokens(model, tokens), noise, 1.0)
        held = sum(each.nbytes for each in (*cache._keys, *cache._values))
        counter.begin_phase()
        cache.keep(rows[: int(COMPACT_AT * count)])
    return (held, *counter.peaks)


def _attend_as_on_gpu(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **others: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """Attend by the call that a GPU would make, which torch knows the outputs of without one."""
    trees = others.get("trees")
    if trees is None:
        return attend(module, query, key, value, attention_mask, **others)
    scaling, window = others.get("scaling"), others.get("sliding_window")
    return attend_at_once(query, key, value, trees, torch.bfloat16, scaling=scaling, window=window), None
