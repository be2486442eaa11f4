"""The memory that each stage takes on each device, moment by moment: what lies there, and what its passes need."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Literal, NamedTuple

from transformers import PreTrainedConfig

from tasks.learning.memory.passes import NoPasses, Output, PassCounter, Rows
from tasks.learning.memory.unloaded import Kind, WeightBytes, unloaded_model, weight_bytes
from tasks.learning.models.shared_base import may_share
from tasks.learning.sampling.copies import sampling_copy
from tasks.methods import METHODS
from tasks.settings.alignment import MethodSettings
from tasks.settings.params import Params
from tasks.settings.training import Training

MomentName = Literal["learn", "score", "sample"]


class Sharing(NamedTuple):
    """How the processes of a stage, each with a device, share what learns."""

    processes: int = 1
    is_sharded: bool = False  # by FSDP; without it each has a copy of all
    offloads: bool = False  # shards, gradients and optimiser lie in CPU memory


class RowLengths(NamedTuple):
    """Tokens of a typical row, and of the prompts that are answered."""

    row: int
    prompt: int


class Trained(NamedTuple):
    """A model that learns, and what of."""

    weights: WeightBytes
    kind: Kind
    output: Output
    rows: Rows  # of a micro-batch
    is_one: bool  # whether that is the whole step


class Moment(NamedTuple):
    """Bytes on each device in one kind of moment of a stage."""

    name: MomentName
    weights: int = 0
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0  # of the largest pass, with gathered shards and all else that is freed after it
    cache: int = 0  # keys and values

    @property
    def resident(self) -> int:
        """What must lie there whatever the size of a micro-batch."""
        return self.weights + self.gradients + self.optimiser

    @property
    def total(self) -> int:
        """All of it."""
        return self.resident + self.activations + self.cache


class StageMemory(NamedTuple):
    """The moments of a stage."""

    stage: str
    moments: list[Moment]

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def resident(self) -> int:
        """What must lie on the device at some moment, without activations and caches."""
        return max(moment.resident for moment in self.moments)


class MemoryModel:
    """Predicts the memory of the stages for a model, in its full size, whatever the settings."""

    def __init__(
        self, config: PreTrainedConfig, lengths: RowLengths, *, on_gpu: bool, counts_passes: bool = True
    ) -> None:
        """Take a model's configuration, and the lengths of the rows that it reads.

        Counting passes takes seconds: without it activations and caches are 0.
        """
        self._config, self._lengths = config, lengths
        self._counter: PassCounter = PassCounter(config, on_gpu=on_gpu) if counts_passes else NoPasses(config)
        self._known_weights: dict[object, WeightBytes] = {}
        self._on_gpu = on_gpu

    def stages(self, params: Params, sharing: Sharing) -> Iterator[StageMemory]:
        """Predict every stage that computes with models."""
        yield self.stage("sft", params, sharing)
        if params.rewards.use_model:
            yield self.stage("reward", params, sharing)
            yield self.stage("held_out_reward", params, sharing)
        yield self.stage(METHODS[params.align.method].stage, params, sharing)
        yield self.stage("evaluate", params, sharing)

    def stage(self, name: str, params: Params, sharing: Sharing) -> StageMemory:
        """Predict one stage."""
        if name == "ppo":
            return StageMemory(name, list(self._ppo(params, sharing)))
        if name == "evaluate":
            return StageMemory(name, list(self._evaluate(params)))
        return StageMemory(name, list(self._supervised(name, params, sharing)))

    def _supervised(self, stage: str, params: Params, sharing: Sharing) -> Iterator[Moment]:
        settings: Training = getattr(params, stage)
        is_reward = stage in ("reward", "held_out_reward")
        kind, output = _read_by(is_reward)
        trains = partial(self._learning, params=params, sharing=sharing)
        items = -(-settings.batch_size // sharing.processes)
        rows = self._micro_batch(params, items, are_pairs=stage not in ("sft", "kto"))
        trained = self._weights(kind, params, trainable=True)
        held = _held(trained, sharing)
        if is_reward and not self._on_gpu:  # members that are trained wait on the CPU
            held = held._replace(weights=held.weights + (getattr(params, stage).ensemble - 1) * trained.all)
        yield trains(held, Trained(trained, kind, output, rows, rows.number >= items))
        reading = self._counter.reading(kind, params, output, rows, trainable=True)
        yield held._replace(name="score", gradients=0, activations=reading + _gathered_by_layer(trained, sharing))
        if stage in ("dpo", "kto"):
            points: MethodSettings = getattr(params, stage)
            if points.evaluation_points:
                prompts = points.evaluation_prompts or params.runtime.max_concurrent_sequences
                yield self._sampling(held, params, prompts, points.max_new_tokens, sharing, trainable=True)

    def _ppo(self, params: Params, sharing: Sharing) -> Iterator[Moment]:
        settings = params.ppo
        policy = self._weights("policy", params, trainable=True)
        held = _held(policy, sharing)
        has_critic = settings.estimator == "gae" and settings.critic == "separate"
        of_reward = self._weights("scorer", params, trainable=True)
        critic = of_reward if has_critic else None
        is_shared = may_share(params) and not sharing.is_sharded
        if critic is not None:
            of_critic = _held(critic, sharing)
            if is_shared:  # the reward model's adapters, and its own
                of_critic = of_critic._replace(weights=2 * critic.trained)
            held = held._replace(
                weights=held.weights + of_critic.weights, optimiser=held.optimiser + of_critic.optimiser
            )
        if not params.lora.rank:
            held = held._replace(weights=held.weights + self._weights("policy", params, trainable=False).all)
        if params.rewards.use_model:
            scorer = of_reward.trained if is_shared else self._weights("scorer", params, trainable=False).all
            held = held._replace(weights=held.weights + params.reward.ensemble * scorer)
        answers = -(-settings.rollouts // sharing.processes)
        items = -(-answers // settings.num_minibatches)
        rows = self._answered(params, items, settings.max_new_tokens)
        is_one, trains = rows.number >= items, partial(self._learning, params=params, sharing=sharing)
        yield trains(held, Trained(policy, "policy", "log_probs", rows, is_one))
        if critic is not None:
            yield trains(held, Trained(critic, "scorer", "values", rows, is_one))
        read = self._answered(params, answers, settings.max_new_tokens)
        gathered = max(_gathered_by_layer(each, sharing) for each in (policy, critic) if each is not None)
        reading = self._counter.reading("policy", params, "log_probs", read, trainable=True)
        yield held._replace(name="score", gradients=0, activations=reading + gathered)
        yield self._sampling(held, params, answers, settings.max_new_tokens, sharing, trainable=True)

    def _evaluate(self, params: Params) -> Iterator[Moment]:
        settings, alone = params.evaluate, Sharing()  # each process has all models
        held = Moment("sample", weights=2 * self._weights("policy", params, trainable=False).all)  # candidate and SFT
        prompts = settings.prompts or params.runtime.max_concurrent_sequences
        yield self._sampling(held, params, prompts, settings.max_new_tokens, alone, trainable=False)
        if params.rewards.use_model:
            scorer = self._weights("scorer", params, trainable=False)
            read = self._answered(params, prompts, settings.max_new_tokens)
            reading = self._counter.reading("scorer", params, "scores", read, trainable=False)
            models = params.reward.ensemble + params.held_out_reward.ensemble
            yield Moment("score", weights=models * scorer.all, activations=reading)

    def _weights(self, kind: Kind, params: Params, *, trainable: bool) -> WeightBytes:
        runtime = params.runtime
        key = (kind, trainable, runtime.precision, runtime.weights, runtime.optimiser, params.lora.model_dump_json())
        if key not in self._known_weights:
            model = unloaded_model(self._config, kind, params, trainable=trainable)
            self._known_weights[key] = weight_bytes(model, runtime.optimiser)
        return self._known_weights[key]

    def _micro_batch(self, params: Params, items: int, *, are_pairs: bool) -> Rows:
        row, prompt = self._lengths.row, min(self._lengths.prompt, self._lengths.row - 1)
        each = row * (2 if are_pairs else 1)
        count = max(1, min(items, params.runtime.max_tokens_per_micro_batch // each))
        return Rows(prompt, row - prompt, count, are_pairs)

    def _answered(self, params: Params, items: int, answer: int) -> Rows:
        row = self._lengths.prompt + answer
        count = max(1, min(items, params.runtime.max_tokens_per_micro_batch // row))
        return Rows(self._lengths.prompt, answer, count)

    def _learning(self, held: Moment, trained: Trained, params: Params, sharing: Sharing) -> Moment:
        """A step of one micro-batch, or of several, which are added to the gradients of those before."""
        counted = self._counter.training(trained.kind, params, trained.output, trained.rows)
        gradients = 0 if sharing.offloads else _share(trained.weights.trained, sharing)
        gathered = _gathered_by_layer(trained.weights, sharing)
        gathered += round(
            gathered * trained.weights.trained / trained.weights.all
        )  # gradients before they are shared out
        activations = counted
        if trained.is_one and not sharing.is_sharded:  # gradients come as activations go, one layer after the other
            activations = max(counted - gradients, counted // self._config.get_text_config().num_hidden_layers)
        return held._replace(name="learn", gradients=gradients, activations=activations + gathered)

    def _sampling(
        self, held: Moment, params: Params, prompts: int, answer: int, sharing: Sharing, *, trainable: bool
    ) -> Moment:
        """Sampling, from a copy where linear layers of the model itself lie in more bits, or are sharded."""
        count = min(prompts, params.runtime.max_concurrent_sequences)
        found = self._counter.sampling(params, self._lengths.prompt, answer, count, trainable=trainable)
        model = unloaded_model(self._config, "policy", params, trainable=trainable)
        copied = sampling_copy(model)
        own = {id(weight) for weight in model.parameters()}
        further = sum(each.nbytes for each in copied.parameters() if sharing.is_sharded or id(each) not in own)
        if sharing.is_sharded and copied is model:
            further = _gathered(self._weights("policy", params, trainable=trainable), sharing)
        return held._replace(
            name="sample",
            weights=held.weights + further,
            gradients=0,
            activations=found.all - found.cache,
            cache=found.cache,
        )


def _read_by(is_reward: bool) -> tuple[Kind, Output]:
    return ("scorer", "scores") if is_reward else ("policy", "log_probs")


def _held(trained: WeightBytes, sharing: Sharing) -> Moment:
    """What lies on a device of a model that learns, between the steps."""
    if sharing.offloads:
        return Moment("learn")
    return Moment("learn", weights=_share(trained.all, sharing), optimiser=_share(trained.moments, sharing))


def _share(size: int, sharing: Sharing) -> int:
    return math.ceil(size / sharing.processes) if sharing.is_sharded else size


def _gathered_by_layer(trained: WeightBytes, sharing: Sharing) -> int:
    """Full weights that a sharded pass has at once: all outside the layers, and two layers, the next one fetched."""
    return trained.all - trained.layers + 2 * trained.largest_layer if sharing.is_sharded else 0


def _gathered(trained: WeightBytes, sharing: Sharing) -> int:
    """Full weights beside the shards where all are gathered, to be read as often as each process likes."""
    if not sharing.is_sharded:
        return 0
    return trained.all if sharing.offloads else trained.all - _share(trained.all, sharing)
