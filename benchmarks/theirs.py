"""TRL's trainers and transformers' `generate`, on the same model bytes, rows, order and steps."""

import tempfile
import time
from importlib import import_module
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from benchmarks.jobs import BETA, SEED, Clock, Job
from benchmarks.workloads import EOS, SIZES, Texts
from tasks.learning.batches import training_batches


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
        "per_device_train_batch_size": job.batch_size,
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


class Timer(TrainerCallback):
    """Marks the end of every step with the loss that the trainer computed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.loss = float("nan")

    def on_step_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Called by the trainer."""
        self._clock.mark(self.loss)


def timed(trainer_class: type, clock: Clock, **options: Any) -> Any:  # noqa: ANN401
    """Make a trainer that tells its exact losses (its log rounds them) and whose steps are timed."""
    timer = Timer(clock)

    class Timed(trainer_class):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            found = super().compute_loss(*args, **kwargs)
            timer.loss = float((found[0] if isinstance(found, tuple) else found).detach())
            return found

    trainer = Timed(callbacks=[timer], **options)
    trainer.remove_callback(PrinterCallback)
    return trainer


def supervised(job: Job, clock: Clock, *, shipped: bool = False, **options: Any) -> None:  # noqa: ANN401
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
        model=AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32),
        args=trl.SFTConfig(**arguments(job, shipped=shipped, **options)),
        train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(job.folder),
    ).train()


def preferences(job: Job, clock: Clock, *, shipped: bool = False, **options: Any) -> None:  # noqa: ANN401
    """RewardTrainer."""
    trl: Any = import_module("trl")
    from datasets import Dataset

    pairs = Texts(SIZES[job.size], seed=2).pairs(job.rows)
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

    pairs = Texts(SIZES[job.size], seed=2).pairs(job.rows)

    def text(ids: list[int]) -> str:
        return " ".join(f"w{word}" for word in ids if word != EOS)  # TRL adds the end-of-sequence token

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


def answers(job: Job, clock: Clock) -> None:
    """`generate` with its dynamic cache: 64 prompts padded on the left, up to 128 tokens."""
    texts = Texts(SIZES[job.size], seed=3)
    prompts = [texts.words(60, 256) for _ in range(64)]
    model: Any = AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job.folder, padding_side="left")
    inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(model.device)
    for step in range(job.answered):
        torch.manual_seed(step)
        with torch.inference_mode():
            found = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=128)
        ends = torch.isin(found[:, inputs["input_ids"].shape[1] :], torch.tensor(model.generation_config.eos_token_id))
        clock.mark(int((ends.cumsum(dim=1) - ends.long() == 0).sum()))  # tokens up to the first end, and the end
