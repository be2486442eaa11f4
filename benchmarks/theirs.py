"""TRL's trainers, on the same model bytes, rows, order and steps."""

import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks.jobs import BETA, SEED, Clock, Job
from benchmarks.ours import KL, ONLINE_EPSILON, ONLINE_RATE, pairs_of, rounds_of_prompts
from benchmarks.workloads import EOS, SIZES, Texts
from tasks.learning.batches import training_batches

ROWS_AT_ONCE = 16  # of RLOO, in a forward and backward pass
# What its engine holds: blocks of keys and values for all answers of a round, and the tokens of a pass.
CONTINUOUS: dict[str, Any] = {
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"block_size": 32, "num_blocks": 1024, "max_batch_tokens": 1024},
}


def tuned_supervised(job: Job, clock: Clock) -> None:
    """SFTTrainer at its best: no padding, and the kernels that are installed."""
    has_flash, has_liger = (find_spec(name) is not None for name in ("flash_attn", "liger_kernel"))
    attention = "flash_attention_2" if has_flash else None
    supervised(job, clock, attention=attention, padding_free=True, max_length=None, use_liger_kernel=has_liger)


def in_our_order(job: Job) -> list[int]:
    """The rows as our trainers meet them."""
    return [index for _, rows in training_batches(job.rows, job.batch_size, 1, SEED) for index in rows]


def arguments(job: Job, *, shipped: bool, **options: Any) -> dict[str, Any]:  # noqa: ANN401
    """Settings of all trainers: the precision of the job, or what TRL ships with (bf16 and gradient checkpointing)."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "per_device_train_batch_size": job.rows_at_once or job.batch_size,
        "gradient_accumulation_steps": job.batch_size // (job.rows_at_once or job.batch_size),
        "num_train_epochs": 1,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "logging_steps": 1000,
        "use_cpu": not torch.cuda.is_available(),
        "train_sampling_strategy": "sequential",
        "seed": SEED,
        "dataloader_pin_memory": False,
        "bf16": shipped or job.precision == "bf16",
        "gradient_checkpointing": shipped,
        **options,
    }


def text(ids: list[int]) -> str:
    """Words that the tokenizer reads as these ids; TRL adds the end-of-sequence token itself."""
    return " ".join(f"w{word}" for word in ids if word != EOS)


class Timer(TrainerCallback):
    """Ends every step with the loss that the trainer computed: the mean of its passes', which have equal shares."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.losses: list[torch.Tensor] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Called by the trainer."""
        self._clock.record(loss=float(torch.stack(self.losses).mean()))
        self.losses.clear()


class RoundTimer(TrainerCallback):
    """Ends every round with what the trainer says of its answers."""

    def __init__(self, clock: Clock, answers: int) -> None:
        self._clock, self._answers = clock, answers

    def on_log(self, *_: Any, **arguments: Any) -> None:  # noqa: ANN401
        """Called by the trainer, after each step and once at its end."""
        logs = arguments["logs"]
        if "reward" in logs:
            tokens = round(logs["completions/mean_length"] * self._answers)
            described = {name: logs[name] for name in ("reward", "kl", "entropy")}
            self._clock.record(answers=self._answers, tokens=tokens, **described)


def timed(trainer_class: type, clock: Clock, **options: Any) -> Any:  # noqa: ANN401
    """Make a trainer that tells its exact losses (its log rounds them) and whose steps are timed."""
    timer = Timer(clock)

    class Timed(trainer_class):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            found = super().compute_loss(*args, **kwargs)
            timer.losses.append((found[0] if isinstance(found, tuple) else found).detach())
            return found

    trainer = Timed(callbacks=[timer], **options)
    trainer.remove_callback(PrinterCallback)
    return trainer


def supervised(
    job: Job,
    clock: Clock,
    *,
    shipped: bool = False,
    attention: str | None = None,
    **options: Any,  # noqa: ANN401
) -> None:
    """SFTTrainer."""
    trl: Any = import_module("trl")
    from datasets import Dataset

    rows = Texts(SIZES[job.size], seed=1).rows(job.rows)
    examples = [
        {"input_ids": [*row.prompt, *row.completion], "labels": [-100] * len(row.prompt) + row.completion}
        for row in (rows[index] for index in in_our_order(job))
    ]
    timed(
        trl.SFTTrainer,
        clock,
        model=AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32, attn_implementation=attention),
        args=trl.SFTConfig(**arguments(job, shipped=shipped, **options)),
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
    ).train()


def preferences(job: Job, clock: Clock, *, shipped: bool = False, **options: Any) -> None:  # noqa: ANN401
    """RewardTrainer."""
    trl: Any = import_module("trl")
    from datasets import Dataset

    pairs = pairs_of(job)
    examples = [
        {
            "chosen_ids": [*pair.chosen.prompt, *pair.chosen.completion],
            "rejected_ids": [*pair.rejected.prompt, *pair.rejected.completion],
        }
        for pair in (pairs[index] for index in in_our_order(job))
    ]
    timed(
        trl.RewardTrainer,
        clock,
        model=AutoModelForSequenceClassification.from_pretrained(job.reward_folder, dtype=torch.float32),
        args=trl.RewardConfig(**arguments(job, shipped=shipped, max_length=None, **options)),
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
    ).train()


def direct(job: Job, clock: Clock, *, shipped: bool = False, precomputed: bool = False, **options: Any) -> None:  # noqa: ANN401
    """DPOTrainer; with the reference in every step, or once for all rows beforehand."""
    trl: Any = import_module("trl")
    from datasets import Dataset

    pairs = pairs_of(job)

    examples = [
        {
            "prompt": text(pair.chosen.prompt) + " ",
            "chosen": text(pair.chosen.completion),
            "rejected": text(pair.rejected.completion),
        }
        for pair in (pairs[index] for index in in_our_order(job))
    ]
    trainer = timed(
        trl.DPOTrainer,
        clock,
        model=AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32),
        args=trl.DPOConfig(**arguments(job, shipped=shipped, max_length=None, beta=BETA, **options)),
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
    )
    if precomputed:  # as the trainer does it, but apart from its tokenising, which is not to count
        trainer._precompute_model_hash = str(time.time())  # a second round must not find the first one's figures
        with clock.before_the_steps():
            trainer.train_dataset = trainer._precompute_ref_logps(trainer.train_dataset, "train", job.batch_size)
        trainer.precompute_ref_logps, trainer.ref_model = True, None
    trainer.train()


def leave_one_out(job: Job, clock: Clock, *, shipped: bool = False, **options: Any) -> None:  # noqa: ANN401
    """RLOOTrainer: one step on a round of answers."""
    trl: Any = import_module("trl")
    from datasets import Dataset

    prompts = [prompt for asked in rounds_of_prompts(job) for prompt in asked[:: job.responses]]
    size = min(ROWS_AT_ONCE, job.answers)
    online = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": job.answers // size,
        "num_generations": job.responses,
        "max_completion_length": job.longest,
        "temperature": 1.0,
        "beta": KL,
        "learning_rate": ONLINE_RATE,
        "adam_epsilon": ONLINE_EPSILON,
        "shuffle_dataset": False,
        "logging_steps": 1,
    }
    trainer = trl.RLOOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32),
        reward_funcs=AutoModelForSequenceClassification.from_pretrained(job.reward_folder, dtype=torch.float32),
        reward_processing_classes=AutoTokenizer.from_pretrained(job.folder),
        args=trl.RLOOConfig(**arguments(job, shipped=shipped, **online, **options)),
        train_dataset=Dataset.from_list([{"prompt": text(prompt) + " "} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
        callbacks=[RoundTimer(clock, job.answers)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
