"""A tokenizer of sixteen words and Llamas of a few thousand weights, made in a moment, for tests of PPO."""

from typing import Any, Literal

import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from tasks.learning.models.loading import ValueHead
from tasks.learning.ppo.scoring import PPOModels
from tasks.settings.params import PARAMS_FILE, Params, parse_params

Critic = Literal["separate", "shared"]
PAD, EOS = 0, 1
WORDS = ["<pad>", "<eos>", "<unk>", "<ask>", *(f"w{number}" for number in range(12))]
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} "
    "{% if message['role'] == 'assistant' %}<eos>{% else %}<ask> {% endif %}{% endfor %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; a prompt is its words and <ask>."""
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=64
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _config(**options: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
        initializer_range=0.3,  # the default of 0.02 makes every distribution flat
        **options,
    )


def tiny_policy(seed: int = 0) -> Any:
    """A causal model with random weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(_config()).eval()


def tiny_reward(seed: int = 1) -> Any:
    """A model with a scalar head and random weights."""
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(_config(num_labels=1)).eval()


def tiny_models(critic: Critic = "separate") -> PPOModels:
    """Policy and reference alike, critic and reward model alike unless the critic is a new head, as PPO begins."""
    policy = tiny_policy()
    return PPOModels(
        tokenizer=tiny_tokenizer(),
        policy=policy,
        reference=tiny_policy().requires_grad_(False),
        critic=tiny_reward() if critic == "separate" else ValueHead(policy),
        reward=tiny_reward().requires_grad_(False),
    )


def tiny_params(runtime: dict[str, object] | None = None, lora: int = 0, **ppo: object) -> Params:
    """The project's own settings, cut to size; keywords change those of ppo."""
    settings = yaml.safe_load(PARAMS_FILE.read_text(encoding="utf-8"))
    settings["runtime"] |= {
        "device": "cpu",
        "threads": 1,
        "max_tokens_per_micro_batch": 40,
        "max_concurrent_sequences": 4,
        "checkpoint_every": 0,
    }
    settings["runtime"] |= runtime or {}
    settings["lora"] |= {"rank": lora}
    settings["ppo"] |= {"iterations": 3, "rollouts": 6, "critic_warmup": 0, "max_new_tokens": 6, **ppo}
    return parse_params(settings)
