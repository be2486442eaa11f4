"""Whether a GPU computes what it should: one figure a check, beside the most that it may be."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import offload, ours
from benchmarks.jobs import Clock, Job
from benchmarks.workloads import SIZES, Texts
from tasks import sft
from tasks.learning.batches import Trees
from tasks.learning.models.attention import attend
from tasks.learning.models.loading import load_policy
from tasks.learning.models.varlen import varlen_precision

# A prompt with two answers, one of which is empty; one with an answer; one with five.
TREES = Trees(((0, 60, 60, 310), (310, 330, 470), (470, 475, 480, 500, 501, 610, 700)))
HEADS, KEY_HEADS, WIDTH, WINDOW = 8, 2, 64, 50
# bf16 has 8 bits: its steps are 2^-8 = .004 of a number, and a gradient sums a few.
ATTENTION_BOUND = 3e-2
LOSS_BOUND = 1e-2  # in nats
FIRST_RATIO_BOUND = 1e-2  # the passes that score and that learn have other shapes, and so other roundings
FIRST_MARGIN_BOUND = 1e-4
STEPS, ROWS = 3, 8
NO_VLLM = "not part of this yet; make test-vllm compares log-probabilities"


class Check(NamedTuple):
    """What a check found."""

    name: str
    found: float | None  # None: not run
    bound: float
    why_not: str = ""

    @property
    def holds(self) -> bool:
        """Whether it was run and is within its bound; a NaN is not."""
        return self.found is not None and self.found <= self.bound


def checks(job: Job) -> Iterator[Check]:
    """Run all that need one process; the job's kind and steps do not count.

    Args:
        job: names the models.
    """
    job = job._replace(steps=STEPS, batch_size=ROWS, answers=ROWS, longest=32, rows_at_once=None)
    yield attention_check()
    for kind, run in (("sft", ours.supervised), ("reward", ours.preferences), ("dpo", ours.direct)):
        losses = {each: losses_of(run, job._replace(kind=kind, precision=each)) for each in ("fp32", "bf16")}
        pairs = zip(losses["fp32"], losses["bf16"], strict=True)
        largest = max(abs(one - other) for one, other in pairs)
        yield Check(f"{kind}: losses in bf16 less those in fp32, {len(losses['fp32'])} steps", largest, LOSS_BOUND)
    yield Check("dpo: margin at the first step, bf16", first_margin(job), FIRST_MARGIN_BOUND)
    yield Check("ppo: ratio at the first step less 1, bf16", first_ratio(job), FIRST_RATIO_BOUND)
    yield Check("sft: two runs whose weights differ, bf16", float(weights(job) != weights(job)), 0.0)


def sharding_check(size: str) -> Check:
    """One process with sharded and offloaded weights, gradients and state beside one without."""
    _, largest = offload.compared(size, count=1, steps=STEPS)
    return Check("sft: FSDP with offload less plain, relative, fp32", largest, offload.TOLERANCE)


def vllm_check() -> Check:
    """The weights that a vLLM engine serves beside the policy's."""
    return Check("ppo: weights of vLLM that differ", None, 0.0, NO_VLLM)


def attention_check() -> Check:
    """One call for all sequences of a packed row beside the loop over them, outputs and gradients."""
    name = "attention: one call less the loop, of numbers about 1"
    if varlen_precision(torch.empty(1, HEADS, 1, WIDTH, device=device(), dtype=torch.bfloat16)) is None:
        return Check(name, None, ATTENTION_BOUND, f"one call has no kernel for {device()}")
    largest = 0.0
    for window in (None, WINDOW):
        looped, at_once = (attended(dtype, window) for dtype in (torch.float32, torch.bfloat16))
        for one, other in zip(at_once, looped, strict=True):
            largest = max(largest, float(((one.float() - other).abs() / (1 + other.abs())).max()))
    return Check(name, largest, ATTENTION_BOUND)


def attended(dtype: torch.dtype, window: int | None) -> list[Tensor]:
    """The output of attention over TREES, and its gradients by queries, keys and values; in fp32 by the loop.

    Args:
        dtype: of all three.
        window: of sliding attention.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = TREES.bounds[-1][-1]
    drawn = [torch.randn(1, count, tokens, WIDTH, generator=generator) for count in (HEADS, KEY_HEADS, KEY_HEADS)]
    # Rounded once, so that both ways begin with the same numbers.
    query, key, value = (each.bfloat16().to(device(), dtype).requires_grad_() for each in drawn)
    output, _ = attend(nn.Identity(), query, key, value, None, trees=TREES, sliding_window=window)
    output.float().sin().sum().backward()  # type: ignore[no-untyped-call]
    return [output.detach(), *(part.grad for part in (query, key, value) if part.grad is not None)]


def losses_of(run: Callable[[Job, Clock], None], job: Job) -> list[float]:
    """The losses of a trainer's steps."""
    clock = Clock(0)
    run(job, clock)
    return [step["loss"] for step in clock.measured().figures]


def first_margin(job: Job) -> float:
    """The largest implicit reward's margin that DPO has at its first step, where policy and reference are one model."""

    class Margins(Clock):
        def log(self, step: int, metrics: Any) -> None:  # noqa: ANN401
            """Take the margin for the loss."""
            super().log(step, {"loss": metrics["reward"]})

    clock = Margins(0)
    ours.direct(job._replace(kind="dpo", precision="bf16", steps=1), clock)
    return abs(clock.measured().figures[0]["loss"])


def first_ratio(job: Job) -> float:
    """By how much PPO's mean ratio leaves 1 at the first step, where the policy is the one that sampled."""
    from tasks.learning.ppo.trainer import PPOTrainer

    job = job._replace(kind="ppo", precision="bf16", steps=1)
    params = ours.prepared(job)
    trainer = PPOTrainer(ours.load_models(job, params), params)
    rollouts = trainer.score(trainer.sample(ours.rounds_of_prompts(job)[0], seed=1), ours.KL)
    return abs(next(iter(trainer.steps(rollouts, 1, "nothing is saved")))["ratio_mean"] - 1)


def weights(job: Job) -> str:
    """Hash what SFT makes of a model's weights."""
    job = job._replace(kind="sft", precision="bf16", steps=1)
    policy = load_policy(job.folder, ours.prepared(job), trainable=True)
    rows = Texts(SIZES[job.size], seed=1).rows(job.rows)
    trainer = ours.trainer_for(job, Clock(0), policy, [row.length for row in rows])
    sft.sft_training_loop(trainer, policy, rows)
    digest = hashlib.sha256()
    for weight in policy.parameters():
        digest.update(weight.detach().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def device() -> torch.device:
    """Where everything runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
