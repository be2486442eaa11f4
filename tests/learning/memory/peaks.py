"""Trains a model of random weights in this process, and prints the most memory that it took, in bytes.

The argument is JSON: {"stage": sft, reward, dpo or ppo, "shape": of a Llama, "settings": sections of params.yaml,
"rows": [tokens of a prompt, tokens of an answer, how many]}. What is measured is the process as the kernel sees it,
beyond what it held before the model was made.
"""

import ctypes
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tasks import dpo, sft
from tasks.data.encoding.tokens import Encoded, EncodedPair
from tasks.learning.maths.pairs import PairValues
from tasks.learning.models import loading
from tasks.learning.models.loading import load_policy, load_reward, set_up, with_adapters
from tasks.learning.models.precision import DTYPES
from tasks.learning.ppo.scoring import PPOModels
from tasks.learning.ppo.trainer import PPOTrainer
from tasks.learning.reference_cache import all_logps
from tasks.learning.reward_model.training import reward_training_loop
from tasks.learning.training.supervised import SupervisedTrainer
from tasks.settings.fingerprint import Fingerprint
from tasks.settings.params import PARAMS_FILE, Params, parse_params
from tests.learning.sharded_checkpoints import resident
from tests.tiny import tiny_tokenizer

STEPS = 3


class NoLog:
    def log(self, *_: object) -> None:
        """Log nothing."""


def settings_of(case: dict[str, Any]) -> Params:
    settings = yaml.safe_load(PARAMS_FILE.read_text(encoding="utf-8"))
    settings["runtime"] |= {"checkpoint_every": 0, "device": "cpu"}
    settings["ppo"] |= {"critic_warmup": 0, "missing_eos_penalty": 0.0}
    for section, values in case["settings"].items():
        settings[section] |= values
    return parse_params(settings)


def llama(**shape: Any) -> LlamaConfig:
    config = LlamaConfig(**shape)
    config.num_labels = 1
    return config


def saved(config: LlamaConfig, folder: Path, params: Params) -> Path:
    """A policy and a reward model of random weights, in files of the precision that they are computed in."""
    for name, kind in (("policy", LlamaForCausalLM), ("reward", LlamaForSequenceClassification)):
        model: Any = kind(config)
        model.to(DTYPES[params.runtime.precision])
        model.save_pretrained(folder / name)
    return folder


def rows_of(case: dict[str, Any], vocabulary: int) -> list[Encoded]:
    prompt, answer, count = case["rows"]
    ids = torch.randint(4, vocabulary, (count, prompt + answer), generator=torch.Generator().manual_seed(0)).tolist()
    return [Encoded(row[:prompt], row[prompt:]) for row in ids]


def trainer_of(stage: str, model: nn.Module, lengths: Sequence[int], params: Params) -> SupervisedTrainer:
    settings = getattr(params, stage)
    log: Any = NoLog()
    return SupervisedTrainer(stage, Fingerprint({}, {}), model, lengths, params=params, settings=settings, run=log)


def train(stage: str, folder: Path, rows: list[Encoded], params: Params) -> None:
    """Take the steps of a stage."""
    pairs = [EncodedPair(row, row._replace(completion=row.completion[::-1])) for row in rows]
    of_rows, of_pairs = [row.length for row in rows], [2 * row.length for row in rows]
    if stage == "ppo":
        return train_by_ppo(folder, rows, params)
    if stage == "reward":
        model = with_adapters(load_reward(folder / "reward", params, trainable=True), params.lora)
        return reward_training_loop(trainer_of(stage, model, of_pairs, params), model, pairs, params.reward)
    policy = with_adapters(load_policy(folder / "policy", params, trainable=True), params.lora)
    if stage == "sft":
        return sft.sft_training_loop(trainer_of(stage, policy, of_rows, params), policy, rows)
    trainer = trainer_of(stage, policy, of_pairs, params)
    reference = PairValues(*all_logps(policy, pairs, list(trainer.first_epoch()), title="reference"))
    return dpo.dpo_training_loop(trainer, policy, pairs, reference, params.dpo)


def train_by_ppo(folder: Path, rows: list[Encoded], params: Params) -> None:
    policy = with_adapters(load_policy(folder / "policy", params, trainable=True), params.lora)
    models = PPOModels(
        tokenizer=tiny_tokenizer(),
        policy=policy,
        reference=None if params.lora.rank else load_policy(folder / "policy", params, trainable=False),
        critic=loading.ValueHead(policy)
        if params.ppo.critic == "shared"
        else with_adapters(load_reward(folder / "reward", params, trainable=True), params.lora),
        reward=load_reward(folder / "reward", params),
    )
    trainer = PPOTrainer(models, params)
    for iteration in range(1, STEPS + 1):
        responses = trainer.sample([row.prompt for row in rows], seed=iteration)
        trainer.update(trainer.score(responses, 0.1), iteration, "")


def main(case: dict[str, Any]) -> None:
    params = settings_of(case)
    set_up(params)
    with tempfile.TemporaryDirectory() as name:
        folder = saved(llama(pad_token_id=0, eos_token_id=1, **case["shape"]), Path(name), params)
        rows = rows_of(case, case["shape"]["vocab_size"])
        tiny = llama(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=64)
        few = [row._replace(prompt=[5, 6], completion=[7, 8]) for row in rows[:4]]
        train(
            case["stage"], saved(tiny, Path(name) / "tiny", params), few, params
        )  # libraries make what they make once
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        train(case["stage"], folder, rows, params)
        print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
