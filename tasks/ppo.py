"""Reads data/validate, models/sft and the rewards, writes models/ppo, its metrics, curve and answers along the way.

Proximal policy optimisation of the SFT model against the rewards: the reward model, functions, or both. Each iteration
samples responses, scores them and learns from them; docs/ppo.md numbers the steps and says what was left out and why.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tasks.common.files import MODELS, VALIDATED
from tasks.data.encoding.encoded import EncodedRows, encoded_prompts
from tasks.data.encoding.tokens import decode, encode_prompts, load_tokenizer
from tasks.data.records import Prompt, Split, read_prompts
from tasks.learning.batches import collate, epoch_order, require_rows
from tasks.learning.evaluation_points import EvaluationPoints
from tasks.learning.models.forward import compute_device
from tasks.learning.models.loading import (
    ValueHead,
    context_length,
    load_policy,
    load_reward,
    load_scorer,
    new_reward_model,
    score_head,
    set_up,
    with_adapters,
)
from tasks.learning.models.outputs import completion_scores
from tasks.learning.models.shared_base import SharedBase, shared_base
from tasks.learning.ppo.advantages import adapted_kl_coefficient
from tasks.learning.ppo.groups import Round, Scored, sample_dynamically
from tasks.learning.ppo.metrics import MLFLOW_NAMES, objective, summary
from tasks.learning.ppo.missing_eos import SFTAnswers, missing_eos_penalty
from tasks.learning.ppo.rewards import by_reward, curve_name, function_scores, prompts_on_disk, weighted_sum
from tasks.learning.ppo.rollout_correction import check_mismatch
from tasks.learning.ppo.scoring import PPOModels, reference_policy
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.learning.sampling.engines import answer_in_shares
from tasks.learning.sampling.sampler import generate
from tasks.learning.seeds import seed_for
from tasks.learning.sharding import shard
from tasks.learning.training.checkpoints import Checkpoints
from tasks.learning.training.curves import publish
from tasks.learning.training.loop import TrainingLoop
from tasks.registry.dvc_outputs.stages import stage_fingerprint
from tasks.registry.mlflow_runs import tracking
from tasks.rewards.answered import Reward
from tasks.rewards.copies import TRAINING, read_copies
from tasks.settings.fingerprint import content_fingerprint
from tasks.settings.params import Params
from tasks.stage import main

SFT, REWARD, PROMPTS = MODELS / "sft", MODELS / "reward", VALIDATED / "prompts.jsonl"
SAMPLES = 8
SFT_ANSWERS = "sft_answers"  # in the training's state


class TrainingPrompts(NamedTuple):
    """The prompts that answers are sampled to."""

    encoded: Sequence[list[int]]
    records: Sequence[Prompt]  # the same prompts, for reward functions


class Clock:
    """Seconds of each phase of an iteration."""

    def __init__(self) -> None:
        """Start without phases."""
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase."""
        start = time.perf_counter()
        yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start

    def tokens_per_second(self, tokens: int) -> dict[str, float]:
        """Give the speed of each phase in response tokens per second. For MLflow only: no output may hold a time."""
        return {f"speed/{phase}_tokens_per_second": tokens / seconds for phase, seconds in self._seconds.items()}


def ppo(params: Params) -> None:
    """Align the SFT model with the rewards by proximal policy optimisation.

    Raises:
        InputError: no prompt to train on, one that does not fit the model, a reward function that fails, or training no
            longer gives numbers.
    """
    set_up(params)
    rewards = params.rewards.training
    functions = [] if all(reward.is_model for reward in rewards) else read_copies(TRAINING)
    settings, models = params.ppo, load_models(params)
    prompts, records = prompts_of("train", models, params), prompts_on_disk(PROMPTS, "train")
    shown = prompts_to_show(models, params)
    held_out = require_rows(read_prompts(VALIDATED, "validation"), PROMPTS, "validation")
    evaluation_points = EvaluationPoints(
        models.policy, models.tokenizer, held_out, settings, params, temperature=settings.temperature
    )
    trainer = PPOTrainer(models, params)
    fingerprint = stage_fingerprint("ppo") or content_fingerprint("ppo", params, inputs_of(params))
    checkpoints = Checkpoints("ppo", fingerprint, params.runtime, trainer.trainable_models, trainer.optimisers)
    with tracking.run("ppo", params, inputs=[PROMPTS]) as run:
        loop = TrainingLoop("ppo", settings.iterations, checkpoints, NamedForMlflow(run), evaluation_points)
        with loop:
            ppo_training_loop(loop, trainer, TrainingPrompts(prompts, records), functions, params=params, run=run)
            run.table("samples", samples(models, functions, shown, params))
            metrics = summary(loop.curve.rows, settings.rollouts)
            evaluation_points.write("ppo")
            publish("ppo", models.policy, models.tokenizer, metrics=metrics, curve=loop.curve, run=run)
    loop.finish()


def ppo_training_loop(
    loop: TrainingLoop,
    trainer: PPOTrainer,
    prompts: TrainingPrompts,
    functions: Sequence[Reward],
    *,
    params: Params,
    run: tracking.Run,
) -> None:
    """Sample, score and learn in every iteration; `run` gets the speed of each phase."""
    settings = params.ppo
    per_iteration = settings.rollouts // settings.responses_per_prompt
    for iteration in loop.steps():
        kl_coefficient = loop.state.get("kl_coefficient", settings.kl_coefficient)
        clock = Clock()
        # Dynamic sampling takes further prompts: the place in their sequence is no function of the iteration.
        start: int = loop.state.get("prompts_drawn", (iteration - 1) * per_iteration)
        sample = partial(
            scored_round,
            trainer,
            prompts,
            functions,
            params=params,
            iteration=iteration,
            start=start,
            state=loop.state,
            clock=clock,
        )
        sampled = sample_dynamically(
            sample, per_iteration, settings.responses_per_prompt, settings.dynamic_sampling or 0
        )
        if settings.dynamic_sampling is not None:
            loop.state["prompts_drawn"] = start + sampled.num_prompts
        with clock("score"):
            penalty = missing_eos_penalty(settings.missing_eos_penalty, SFTAnswers(*loop.state[SFT_ANSWERS]))
            rollouts = trainer.score(sampled.responses, kl_coefficient, sampled.scores, penalty)
        metrics = objective(rollouts, kl_coefficient, has_critic=trainer.has_critic)
        if settings.responses_per_prompt > 1:
            metrics["uniform_prompts"] = sampled.num_uniform / sampled.num_prompts
        if settings.dynamic_sampling is not None:
            metrics["prompts_sampled"] = sampled.num_prompts
        if settings.missing_eos_penalty:
            metrics["missing_eos_penalty"] = penalty
        loop.check(iteration, {"mean score": metrics["reward"], "mean KL": metrics["kl"]})
        check_mismatch(metrics.get("rollout_kl", 0.0), settings.max_rollout_kl, iteration, loop.last_checkpoint)
        with clock("update"):
            metrics |= trainer.update(rollouts, iteration, loop.last_checkpoint, kl_coefficient)
        if settings.kl_target is not None:
            loop.state["kl_coefficient"] = adapted_kl_coefficient(
                kl_coefficient, metrics["kl"], settings.kl_target, settings.kl_horizon, settings.rollouts
            )
        names = (*MLFLOW_NAMES, *map(curve_name, rollouts.by_reward))
        loop.record(iteration, {name: metrics[name] for name in names if name in metrics}, "reward", "kl")
        run.log(iteration, clock.tokens_per_second(int(rollouts.mask.sum())))


def scored_round(
    trainer: PPOTrainer,
    prompts: TrainingPrompts,
    functions: Sequence[Reward],
    asked: Round,
    *,
    params: Params,
    iteration: int,
    start: int,
    state: dict[str, Any],
    clock: Clock,
) -> Scored:
    """Answer the prompts of a round of sampling and score the answers; the iteration's first lies at `start`.

    The training's `state` gets what the first answers say of the SFT model's.
    """
    drawn = drawn_prompts(len(prompts.encoded), start + asked.skipped, asked.num_prompts, params.seed)
    drawn = [index for index in drawn for _ in range(params.ppo.responses_per_prompt)]
    with clock("generate"):
        seed = seed_for(params.seed, f"sampling, round {asked.number}" if asked.number else "sampling", iteration)
        responses = trainer.sample([prompts.encoded[index] for index in drawn], seed)
    with clock("score"):
        of_functions = function_scores(
            functions, prompts.records, drawn, responses, trainer.tokenizer, reasoning=params.base.reasoning
        )
        scores = trainer.reward_scores(responses, of_functions)
    known = state.get(SFT_ANSWERS)
    answers = trainer.observe(known and SFTAnswers(*known), responses, scores)
    state[SFT_ANSWERS] = [*answers]  # as a list: checkpoints hold plain data
    penalty = missing_eos_penalty(params.ppo.missing_eos_penalty, answers)
    return Scored(responses, scores, trainer.learned_scores(responses, scores, penalty))


def inputs_of(params: Params) -> list[Path]:
    """What the stage reads that DVC would follow."""
    rewards = params.rewards
    functions = [] if all(reward.is_model for reward in rewards.training) else [TRAINING]
    return [PROMPTS, SFT, *([REWARD] if rewards.use_model else []), *functions]


def load_models(params: Params) -> PPOModels:
    """Load the models, the reward model only if it is a reward; each is sharded before the next is loaded."""
    base = load_policy(SFT, params, trainable=True)
    shared = shared_base(base, params)
    policy = with_adapters(base, params.lora)
    shard(policy)
    critic = load_critic(policy, params, shared)
    if critic is not None and not isinstance(critic, ValueHead):  # which is small: every rank has all of it
        shard(critic)
    return PPOModels(
        tokenizer=load_tokenizer(SFT),
        policy=policy,
        reference=None if params.lora.rank else load_policy(SFT, params, trainable=False),
        critic=critic,
        reward=load_reward_model(params, shared) if params.rewards.use_model else None,
    )


def load_reward_model(params: Params, shared: SharedBase | None) -> nn.Module:
    """Load the reward model or ensemble, on the policy's base where that is possible."""
    return (shared and shared.scorer(REWARD)) or load_scorer(REWARD, params)


def load_critic(policy: nn.Module, params: Params, shared: SharedBase | None = None) -> nn.Module | None:
    """Load the critic, if the estimator has one.

    It is a value head on the policy's backbone, or a copy of the reward model, of an ensemble the first member, with
    its scale; without a reward model it is the SFT model with a new scalar head that gives 0 everywhere at first. Where
    that is possible it stands on the policy's base.
    """
    if params.ppo.critic == "shared":
        return ValueHead(policy)
    if params.ppo.estimator != "gae":
        return None
    on_base = shared and shared.critic(REWARD if params.rewards.use_model else None, params.lora)
    if on_base:
        return on_base
    if params.rewards.use_model:
        return with_adapters(load_reward(REWARD, params, trainable=True), params.lora)
    critic = new_reward_model(SFT, params)
    nn.init.zeros_(score_head(critic).get_parameter("weight"))
    return with_adapters(critic, params.lora)


def prompts_of(split: Split, models: PPOModels, params: Params) -> EncodedRows[list[int]]:
    """Give the encoded prompts of a split.

    Raises:
        InputError: there are none, or one leaves no room for an answer.
    """
    context, new_tokens = context_length(models.policy), params.ppo.max_new_tokens
    return require_rows(encoded_prompts(VALIDATED, split, models.tokenizer, context, new_tokens), PROMPTS, split)


def drawn_prompts(count: int, start: int, number: int, seed: int) -> list[int]:
    """Choose prompts to answer: the next ones of an endless sequence of shuffled epochs.

    Args:
        count: number of prompts.
        start: how many were drawn before.
        number: how many are drawn now.
        seed: of the shuffling.

    Returns:
        Indices; all prompts are drawn equally often.
    """
    positions = range(start, start + number)
    orders = {epoch: epoch_order(count, epoch, seed) for epoch in {position // count for position in positions}}
    return [orders[position // count][position % count] for position in positions]


def prompts_to_show(models: PPOModels, params: Params) -> list[tuple[Prompt, list[int]]]:
    """Choose and encode the validation prompts of `samples`: before training, so that no prompt can fail after it.

    Raises:
        InputError: a prompt leaves no room for an answer.
    """
    records = read_prompts(VALIDATED, "validation")[:SAMPLES]
    encoded = encode_prompts(
        models.tokenizer, records, context_length(models.policy), new_tokens=params.ppo.max_new_tokens
    )
    return list(zip(records, encoded, strict=True))


def samples(
    models: PPOModels, functions: Sequence[Reward], shown: Sequence[tuple[Prompt, list[int]]], params: Params
) -> list[dict[str, Any]]:
    """Answer a few validation prompts before and after training, with the same random numbers, for people to read."""
    if not shown:
        return []
    settings, rewards, tokenizer = params.ppo, params.rewards.training, models.tokenizer
    records, prompts = [record for record, _ in shown], [prompt for _, prompt in shown]

    def answered(policy: nn.Module) -> tuple[list[str], list[float]]:
        sample = partial(
            generate,
            tokenizer=tokenizer,
            prompts=prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=seed_for(params.seed, "samples", 0),
            max_concurrent_sequences=SAMPLES,
        )
        responses = answer_in_shares(sample, policy, prompts)
        batch = collate([response.row for response in responses], compute_device(policy))
        of_functions = function_scores(
            functions, records, range(len(records)), responses, tokenizer, reasoning=params.base.reasoning
        )
        with torch.no_grad():
            of_model = torch.zeros(0) if models.reward is None else completion_scores(models.reward, batch)
        scores = weighted_sum(rewards, by_reward(rewards, of_model, of_functions))
        return [decode(tokenizer, response.row.completion) for response in responses], scores.tolist()

    with reference_policy(models) as frozen:
        before, scores_before = answered(frozen)
    after, scores_after = answered(models.policy)
    columns = zip(records, before, scores_before, after, scores_after, strict=True)
    fields = ("prompt", "before", "score_before", "after", "score_after")
    return [dict(zip(fields, (record.prompt[-1]["content"], *rest), strict=True)) for record, *rest in columns]


class NamedForMlflow:
    """A run in MLflow that gets the curve's columns under the names of `MLFLOW_NAMES`, or their own."""

    def __init__(self, run: tracking.Run) -> None:
        """Wrap a run."""
        self._run = run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an iteration."""
        self._run.log(step, {MLFLOW_NAMES.get(name, name): value for name, value in metrics.items()})


if __name__ == "__main__":
    main(ppo)
