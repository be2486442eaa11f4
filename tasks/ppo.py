"""Reads data/validate, models/sft and the rewards, writes models/ppo, its metrics, curve and answers along the way.

Proximal policy optimisation of the SFT model against the rewards: the reward model, functions, or both. Each round
samples responses, scores them and learns from them; docs/ppo.md numbers the steps and says what was left out and why.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from tasks.common.files import MODELS, VALIDATED
from tasks.data.encoding.encoded import EncodedRows, encoded_prompts
from tasks.data.encoding.tokens import decode, encode_prompts, load_tokenizer
from tasks.data.records import Prompt, Split, read_prompts
from tasks.learning import processes
from tasks.learning.batches import collate, epoch_order
from tasks.learning.models.forward import unwrapped
from tasks.learning.models.loading import (
    ValueHead,
    context_length,
    load_policy,
    load_reward,
    new_reward_model,
    score_head,
    set_up,
    with_adapters,
)
from tasks.learning.models.outputs import completion_scores
from tasks.learning.ppo.advantages import adapted_kl_coefficient, explained_variance, masked_mean
from tasks.learning.ppo.rewards import (
    by_reward,
    curve_name,
    function_scores,
    is_of_a_reward,
    prompts_on_disk,
    weighted_sum,
)
from tasks.learning.ppo.scoring import Models, Rollouts, reference_policy
from tasks.learning.ppo.trainer import Learner
from tasks.learning.sampling.sampler import generate
from tasks.learning.seeds import seed_for
from tasks.learning.sharding import assembled
from tasks.learning.training.checkpoints import Checkpoints, CurveRow, Progress
from tasks.learning.training.curves import Curve, publish
from tasks.learning.training.evaluation_points import Marks
from tasks.learning.training.optimisation import check_finite
from tasks.learning.training.supervised import require_rows
from tasks.registry.dvc_outputs.stages import stage_origin
from tasks.registry.mlflow_runs import tracking
from tasks.rewards.answered import Reward
from tasks.rewards.copies import TRAINING, read_copies
from tasks.settings.fingerprint import content_origin
from tasks.settings.params import Params
from tasks.stage import main

SFT, REWARD, PROMPTS = MODELS / "sft", MODELS / "reward", VALIDATED / "prompts.jsonl"
SAMPLES = 8
# The curve's columns in their order, and what MLflow calls them: grouped as dashboards for PPO group them.
MLFLOW_NAMES = {
    "reward": "objective/reward",
    "rlhf_reward": "objective/rlhf_reward",
    "kl": "objective/kl",
    "kl_per_token": "objective/kl_per_token",
    "score_std": "objective/score_std",
    "eos_rate": "response/eos_rate",
    "response_length": "response/length",
    "entropy": "policy/entropy",
    "approx_kl": "policy/approx_kl",
    "clip_fraction": "policy/clip_fraction",
    "ratio_mean": "policy/ratio_mean",
    "ratio_var": "policy/ratio_var",
    "policy_loss": "policy/loss",
    "value_loss": "value/loss",
    "value_clip_fraction": "value/clip_fraction",
    "explained_variance": "value/explained_variance",
    "grad_norm_policy": "policy/grad_norm",
    "grad_norm_critic": "value/grad_norm",
    "kl_coefficient": "objective/kl_coefficient",
    "learning_rate": "policy/learning_rate",
}
SUMMARISED = (
    "reward",
    "rlhf_reward",
    "kl",
    "entropy",
    "response_length",
    "eos_rate",
    "approx_kl",
    "clip_fraction",
    "explained_variance",
)


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
    marks = Marks(models.policy, models.tokenizer, held_out, settings, params)
    learner = Learner(models, params)
    origin = stage_origin("ppo") or content_origin("ppo", params, inputs_of(params))
    checkpoints = Checkpoints("ppo", origin, params.runtime, learner.models_that_learn, learner.optimisers)
    with tracking.run("ppo", params, inputs=[PROMPTS]) as run, checkpoints:
        done = checkpoints.restore()
        curve = Curve("ppo", settings.iterations, NamedForMlflow(run), done.rows)
        marks.restore(done.extra)
        kl_coefficient = done.extra.get("kl_coefficient", settings.kl_coefficient)
        for iteration in range(done.step + 1, settings.iterations + 1):
            marks.visit(iteration - 1, settings.iterations)
            clock = Clock()
            chosen = drawn(len(prompts), iteration, settings.rollouts // settings.responses_per_prompt, params.seed)
            chosen = [index for index in chosen for _ in range(settings.responses_per_prompt)]
            with clock("generate"):
                seed = seed_for(params.seed, "sampling", iteration)
                responses = learner.sample([prompts[index] for index in chosen], seed)
            with clock("score"):
                of_functions = function_scores(functions, records, chosen, responses, models.tokenizer)
                rollouts = learner.judge(responses, kl_coefficient, of_functions)
            figures = objective(rollouts, kl_coefficient, has_critic=models.critic is not None)
            check_finite(iteration, {"mean score": figures["reward"], "mean KL": figures["kl"]}, checkpoints.kept)
            with clock("update"):
                figures |= learner.update(rollouts, iteration, checkpoints.kept, kl_coefficient)
            if settings.kl_target is not None:
                kl_coefficient = adapted_kl_coefficient(
                    kl_coefficient, figures["kl"], settings.kl_target, settings.kl_horizon, settings.rollouts
                )
            names = (*MLFLOW_NAMES, *map(curve_name, rollouts.by_reward))
            curve.add(iteration, {name: figures[name] for name in names if name in figures}, "reward", "kl")
            run.log(iteration, clock.tokens_per_second(int(rollouts.mask.sum())))
            progress = Progress(iteration, curve.rows, {"kl_coefficient": kl_coefficient, **marks.extra})
            checkpoints.save(progress, final=iteration == settings.iterations)
        marks.visit(settings.iterations, settings.iterations)
        models = models._replace(policy=assembled(models.policy))
        run.table("samples", samples(models, functions, shown, params))
        metrics = summary(curve.rows, settings.rollouts)
        marks.write("ppo")
        publish("ppo", models.policy, models.tokenizer, metrics=metrics, curve=curve, run=run)
    if processes.is_first():
        checkpoints.finish()


def inputs_of(params: Params) -> list[Path]:
    """What the stage reads that DVC would follow."""
    rewards = params.rewards
    functions = [] if all(reward.is_model for reward in rewards.training) else [TRAINING]
    return [PROMPTS, SFT, *([REWARD] if rewards.use_model else []), *functions]


def load_models(params: Params) -> Models:
    """Load the models, of which the reward model may not be needed."""
    policy = with_adapters(load_policy(SFT, params, trainable=True), params.lora)
    return Models(
        tokenizer=load_tokenizer(SFT),
        policy=policy,
        reference=None if params.lora.rank else load_policy(SFT, params, trainable=False),
        critic=load_critic(policy, params),
        reward=load_reward(REWARD, params) if params.rewards.use_model else None,
    )


def load_critic(policy: nn.Module, params: Params) -> nn.Module | None:
    """Load the critic, where the estimator has one.

    It is a layer on the policy's last states, or a copy of the reward model, head and scale included; without a reward
    model it is the SFT model with a scalar head that gives 0 everywhere at first.
    """
    if params.ppo.critic == "shared":
        return ValueHead(policy)
    if params.ppo.estimator != "gae":
        return None
    if params.rewards.use_model:
        return with_adapters(load_reward(REWARD, params, trainable=True), params.lora)
    critic = new_reward_model(SFT, params)
    nn.init.zeros_(score_head(critic).get_parameter("weight"))
    return with_adapters(critic, params.lora)


def prompts_of(split: Split, models: Models, params: Params) -> EncodedRows[list[int]]:
    """Give the encoded prompts of a split.

    Raises:
        InputError: there are none, or one leaves no room for an answer.
    """
    context, new_tokens = context_length(models.policy), params.ppo.max_new_tokens
    return require_rows(encoded_prompts(VALIDATED, split, models.tokenizer, context, new_tokens), PROMPTS, split)


def drawn(count: int, iteration: int, rollouts: int, seed: int) -> list[int]:
    """Choose the prompts of a round: its stretch of one endless row of shuffled epochs.

    Args:
        count: prompts there are.
        iteration: the round, from 1.
        rollouts: prompts in each round.
        seed: of the shuffling.

    Returns:
        Indices; all prompts are met equally often, whatever the round's size.
    """
    places = range((iteration - 1) * rollouts, iteration * rollouts)
    orders = {epoch: epoch_order(count, epoch, seed) for epoch in {place // count for place in places}}
    return [orders[place // count][place % count] for place in places]


def objective(rollouts: Rollouts, kl_coefficient: float, *, has_critic: bool) -> dict[str, float]:
    """Describe a round before it is learned from: score, KL, responses, and how well a critic foresaw the returns.

    The KL is the k1 estimate whichever estimator is in the reward, so that curves can be compared; it may be a little
    below 0 by chance.
    """
    mask, log_ratios = rollouts.mask, rollouts.log_probs - rollouts.reference_log_probs
    kl = log_ratios.sum(dim=1)
    figures = {
        "reward": rollouts.scores.mean(),
        "rlhf_reward": (rollouts.scores - kl_coefficient * kl).mean(),
        "kl": kl.mean(),
        "kl_per_token": masked_mean(log_ratios, mask),
        "score_std": rollouts.scores.std(correction=0),
        "eos_rate": rollouts.has_ended.float().mean(),
        "response_length": mask.sum(dim=1).float().mean(),
        "entropy": masked_mean(rollouts.entropies, mask),
    }
    figures |= {curve_name(name): scores.mean() for name, scores in rollouts.by_reward.items()}
    if has_critic:
        figures["explained_variance"] = explained_variance(rollouts.returns, rollouts.values, mask)
    return {**{name: value.item() for name, value in figures.items()}, "kl_coefficient": kl_coefficient}


def summary(rows: Sequence[CurveRow], rollouts: int) -> dict[str, Any]:
    """Condense the curve: means over its first and its last tenth, and what was consumed."""
    tenth = max(1, len(rows) // 10)

    def means(part: Sequence[CurveRow]) -> dict[str, float]:
        names = [*SUMMARISED, *(name for name in rows[0] if is_of_a_reward(name))]
        return {name: fmean(row[name] for row in part) for name in names if name in rows[0]}

    return {
        "first": means(rows[:tenth]),
        "last": means(rows[-tenth:]),
        "iterations": len(rows),
        "episodes": len(rows) * rollouts,
        "tokens": round(sum(row["response_length"] for row in rows) * rollouts),
    }


def prompts_to_show(models: Models, params: Params) -> list[tuple[Prompt, list[int]]]:
    """Choose and encode the validation prompts of `samples`: before training, so that none can stop it at its end.

    Raises:
        InputError: a prompt leaves no room for an answer.
    """
    records = read_prompts(VALIDATED, "validation")[:SAMPLES]
    encoded = encode_prompts(
        models.tokenizer, records, context_length(models.policy), new_tokens=params.ppo.max_new_tokens
    )
    return list(zip(records, encoded, strict=True))


def samples(
    models: Models, functions: Sequence[Reward], shown: Sequence[tuple[Prompt, list[int]]], params: Params
) -> list[dict[str, Any]]:
    """Answer the same few validation prompts before and after, with the same random numbers, to be read by people."""
    if not shown:
        return []
    settings, rewards, tokenizer = params.ppo, params.rewards.training, models.tokenizer
    records, prompts = [record for record, _ in shown], [prompt for _, prompt in shown]

    def answered(policy: nn.Module) -> tuple[list[str], list[float]]:
        responses = generate(
            policy,
            tokenizer,
            prompts,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=seed_for(params.seed, "samples", 0),
            max_concurrent_sequences=SAMPLES,
        )
        batch = collate([response.row for response in responses], unwrapped(policy).device)
        of_functions = function_scores(functions, records, range(len(records)), responses, tokenizer)
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
        """Stand before a run."""
        self._run = run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of an iteration."""
        self._run.log(step, {MLFLOW_NAMES.get(name, name): value for name, value in metrics.items()})


class Clock:
    """Seconds that the phases of one round took."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase."""
        start = time.perf_counter()
        yield
        self._seconds[phase] = time.perf_counter() - start

    def tokens_per_second(self, tokens: int) -> dict[str, float]:
        """Give the speed of each phase in response tokens a second. For MLflow only: no output may hold a time."""
        return {f"speed/{phase}_tokens_per_second": tokens / seconds for phase, seconds in self._seconds.items()}


if __name__ == "__main__":
    main(ppo)
