"""Trueline's own trainers and sampler, as the stages call them."""

from pathlib import Path

from benchmarks.jobs import BETA, SEED, Clock, Job
from benchmarks.workloads import SIZES, Texts
from tasks import dpo, sft
from tasks.data.tokens import load_tokenizer
from tasks.learning import scoring
from tasks.learning.fitting import Fit
from tasks.learning.models import load_policy, load_reward, new_reward_model, save_model, set_up
from tasks.learning.rollouts import generate
from tasks.params import PARAMS_FILE, Params, load_params

KEY = "benchmark"
EPSILON = 1e-8  # TRL's


def settings_for(job: Job) -> Params:
    """The shipped settings, with what the job asks for."""
    shipped = load_params(PARAMS_FILE)
    training = {
        "epochs": 1,
        "batch_size": job.batch_size,
        "learning_rate": job.learning_rate,
        "warmup": 0.0,
        "schedule": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    runtime = {"threads": job.threads, "precision": job.precision, "checkpoint_every": 0, "tokens_per_pass": job.tokens}
    sections = {
        "seed": SEED,
        "runtime": shipped.runtime.model_copy(update=runtime),
        "sft": shipped.sft.model_copy(update=training),
        "reward": shipped.reward.model_copy(
            update=training | {"margin": 0.0, "centering": 0.0, "label_smoothing": 0.0}
        ),
        "dpo": shipped.dpo.model_copy(update=training | {"beta": BETA, "nll_weight": 0.0, "loss": "sigmoid"}),
    }
    return shipped.model_copy(update=sections)


def supervised(job: Job, clock: Clock) -> None:
    """SFT."""
    params = settings_for(job)
    set_up(params)
    policy = load_policy(job.folder, params, trainable=True)
    rows = Texts(SIZES[job.size], seed=1).rows(job.rows)
    lengths = [row.length for row in rows]
    fit = Fit(job.kind, KEY, policy, lengths, params=params, settings=params.sft, run=clock, epsilon=EPSILON)
    sft.train(fit, policy, rows)


def preferences(job: Job, clock: Clock) -> None:
    """The reward model."""
    params = settings_for(job)
    set_up(params)
    model = load_reward(job.reward_folder, params, trainable=True)
    pairs = Texts(SIZES[job.size], seed=2).pairs(job.rows)
    lengths = [2 * pair.length for pair in pairs]
    fit = Fit(job.kind, KEY, model, lengths, params=params, settings=params.reward, run=clock, epsilon=EPSILON)
    scoring.train(fit, model, pairs, params.reward)


def direct(job: Job, clock: Clock) -> None:
    """DPO; the reference's log-probabilities count as the work they are."""
    params = settings_for(job)
    set_up(params)
    policy = load_policy(job.folder, params, trainable=True)
    pairs = Texts(SIZES[job.size], seed=2).pairs(job.rows)
    lengths = [2 * pair.length for pair in pairs]
    fit = Fit(job.kind, KEY, policy, lengths, params=params, settings=params.dpo, run=clock, epsilon=EPSILON)
    with clock.before_the_steps():
        reference = dpo.reference_logps(fit, policy, pairs)
    dpo.train(fit, policy, pairs, reference, params.dpo)


def answers(job: Job, clock: Clock) -> None:
    """Sampling: 64 prompts, up to 128 tokens."""
    params = settings_for(job)
    set_up(params)
    policy, tokenizer = load_policy(job.folder, params, trainable=False), load_tokenizer(job.folder)
    texts = Texts(SIZES[job.size], seed=3)
    prompts = [texts.words(60, 256) for _ in range(64)]
    for step in range(job.answered):
        found = generate(
            policy, tokenizer, prompts, max_new_tokens=128, temperature=1.0, seed=step, slots=params.runtime.slots
        )
        clock.mark(sum(len(response.row.completion) for response in found))


def make_reward_model(folder: Path, target: Path) -> None:
    """Write the model of a folder with a new scalar head, for all variants to train."""
    params = settings_for(Job("reward", "S", folder, target, "fp32", steps=1))
    save_model(new_reward_model(folder, params), load_tokenizer(folder), target)
