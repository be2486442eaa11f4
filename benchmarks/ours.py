"""Trueline's own trainers and sampler, as the stages call them."""

from pathlib import Path
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from benchmarks.jobs import BETA, SEED, Clock, Job, described
from benchmarks.workloads import SIZES, Texts
from tasks import dpo, sft
from tasks.data.encoding.tokens import EncodedPair, load_tokenizer
from tasks.learning.maths.pairs import PairValues
from tasks.learning.models.loading import ValueHead, load_policy, load_reward, new_reward_model, set_up
from tasks.learning.models.saving import save_model
from tasks.learning.ppo.scoring import PPOModels
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.learning.reference_cache import all_logps
from tasks.learning.reward_model.training import reward_training_loop
from tasks.learning.sampling.sampler import generate
from tasks.learning.training.supervised import SupervisedTrainer
from tasks.settings.fingerprint import Fingerprint
from tasks.settings.params import PARAMS_FILE, Params, Training, load_params

UNSAVED = Fingerprint({}, {})  # checkpoints are off
EPSILON = 1e-8  # TRL's
# The same for all that learn from sampled answers; 1e-5 is the epsilon of PPOTrainer.
ONLINE_RATE, ONLINE_EPSILON, KL = 1e-5, 1e-5, 0.05
# PPO without what only some write: clipped scores, penalties, schedules.
PLAIN = {
    "temperature": 1.0,
    "learning_rate": ONLINE_RATE,
    "critic_learning_rate": ONLINE_RATE,
    "critic_warmup": 0,
    "schedule": "constant",
    "max_grad_norm": 1.0,
    "kl_coefficient": KL,
    "kl_estimator": "k1",
    "kl_target": None,
    "score_clip": None,
    "missing_eos_penalty": 0.0,
}


def settings_for(job: Job) -> Params:
    """The shipped settings, with what the job asks for."""
    shipped = load_params(PARAMS_FILE)
    training = {
        "epochs": 1,
        "batch_size": job.batch_size,
        "learning_rate": job.learning_rate,
        "warmup_ratio": 0.0,
        "schedule": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    runtime = {
        "threads": job.threads,
        "precision": job.precision,
        "checkpoint_every": 0,
        "max_tokens_per_micro_batch": job.tokens,
        "compile": job.compiled,
    }
    # TRL's RLOO takes one step on a round; PPO goes over it twice, a quarter of it in a step.
    steps = {"epochs": 2, "num_minibatches": 4} if job.kind == "ppo" else {"epochs": 1, "num_minibatches": 1}
    online = {
        "estimator": "gae" if job.kind == "ppo" else "rloo",
        "iterations": job.all_steps,
        "rollouts": job.answers,
        "responses_per_prompt": job.responses,
        "max_new_tokens": job.longest,
    }
    sections = {
        "seed": SEED,
        "runtime": shipped.runtime.model_copy(update=runtime),
        "sft": shipped.sft.model_copy(update=training),
        "reward": shipped.reward.model_copy(
            update=training | {"margin": 0.0, "centering": 0.0, "label_smoothing": 0.0}
        ),
        "dpo": shipped.dpo.model_copy(update=training | {"beta": BETA, "nll_weight": 0.0, "loss": "sigmoid"}),
        "ppo": shipped.ppo.model_copy(update=PLAIN | steps | online),
    }
    return shipped.model_copy(update=sections)


def prepared(job: Job) -> Params:
    """The settings of a job, in force."""
    params = settings_for(job)
    set_up(params)
    return params


def supervised(job: Job, clock: Clock) -> None:
    """SFT."""
    params = prepared(job)
    policy = load_policy(job.folder, params, trainable=True)
    rows = Texts(SIZES[job.size], seed=1).rows(job.rows)
    lengths = [row.length for row in rows]
    sft.sft_training_loop(trainer_for(job, clock, policy, lengths), policy, rows)


def preferences(job: Job, clock: Clock) -> None:
    """The reward model."""
    params = prepared(job)
    model = load_reward(job.reward_folder, params, trainable=True)
    pairs = pairs_of(job)
    reward_training_loop(trainer_for(job, clock, model, lengths_of(pairs)), model, pairs, params.reward)


def direct(job: Job, clock: Clock) -> None:
    """DPO; the reference's log-probabilities count as the work they are."""
    params = prepared(job)
    policy = load_policy(job.folder, params, trainable=True)
    pairs = pairs_of(job)
    trainer = trainer_for(job, clock, policy, lengths_of(pairs))
    with clock.before_the_steps():
        micro_batches = list(trainer.first_epoch())
        reference = PairValues(*all_logps(policy, pairs, micro_batches, title="reference"))
    dpo.dpo_training_loop(trainer, policy, pairs, reference, params.dpo)


def pairs_of(job: Job) -> list[EncodedPair]:
    """The pairs that reward models and DPO learn from."""
    return Texts(SIZES[job.size], seed=2).pairs(job.rows)


def lengths_of(pairs: list[EncodedPair]) -> list[int]:
    """Tokens of pairs, each row of one as long as the longer."""
    return [2 * pair.length for pair in pairs]


def trainer_for(job: Job, clock: Clock, model: PreTrainedModel, lengths: list[int]) -> SupervisedTrainer:
    """A run of a trainer, timed by the clock, with TRL's optimiser."""
    params = settings_for(job)
    settings: Training = getattr(params, job.kind)
    return SupervisedTrainer(
        job.kind, UNSAVED, model, lengths, params=params, settings=settings, run=clock, epsilon=EPSILON
    )


def answers(job: Job, clock: Clock) -> None:
    """Sampling."""
    params = prepared(job)
    policy, tokenizer = load_policy(job.folder, params, trainable=False), load_tokenizer(job.folder)
    prompts, sequences = Texts(SIZES[job.size], seed=3).prompts(job.answers), params.runtime.max_concurrent_sequences
    for step in range(job.all_steps):
        found = generate(
            policy,
            tokenizer,
            prompts,
            max_new_tokens=job.longest,
            temperature=1.0,
            seed=step,
            max_concurrent_sequences=sequences,
        )
        clock.record(answers=len(found), tokens=sum(len(response.row.completion) for response in found))


def online(job: Job, clock: Clock, critic: Literal["separate", "shared"] = "separate") -> None:
    """Rounds of PPO or RLOO: sample, score, learn."""
    params = prepared(job)
    params = params.model_copy(update={"ppo": params.ppo.model_copy(update={"critic": critic})})
    models = load_models(job, params)
    trainer = PPOTrainer(models, params)
    for step, asked in enumerate(rounds_of_prompts(job), start=1):
        rollouts = trainer.score(trainer.sample(asked, seed=step), KL)
        trainer.update(rollouts, step, last_checkpoint="nothing is saved")
        log_ratios = rollouts.log_probs - rollouts.reference_log_probs
        clock.record(**described(rollouts.scores, log_ratios, rollouts.entropies, rollouts.mask))


def load_models(job: Job, params: Params) -> PPOModels:
    """Load the models of a round, as the stage does: the critic begins as the reward model, or is a new layer."""
    policy = load_policy(job.folder, params, trainable=True)
    critic: nn.Module | None = None
    if job.kind == "ppo":
        is_shared = params.ppo.critic == "shared"
        critic = ValueHead(policy) if is_shared else load_reward(job.reward_folder, params, trainable=True)
    return PPOModels(
        tokenizer=load_tokenizer(job.folder),
        policy=policy,
        reference=load_policy(job.folder, params, trainable=False),
        critic=critic,
        reward=load_reward(job.reward_folder, params),
    )


def rounds_of_prompts(job: Job) -> list[list[list[int]]]:
    """The prompts of every round, each as often as it is answered."""
    count = job.answers // job.responses
    prompts = Texts(SIZES[job.size], seed=3).prompts(count * job.all_steps)
    starts = range(0, len(prompts), count)
    return [[prompt for prompt in prompts[start : start + count] for _ in range(job.responses)] for start in starts]


def make_reward_model(folder: Path, target: Path) -> None:
    """Write the model of a folder with a new scalar head, for all variants to train."""
    params = settings_for(Job("reward", "S", folder, target, "fp32", steps=1))
    save_model(new_reward_model(folder, params), load_tokenizer(folder), target)
