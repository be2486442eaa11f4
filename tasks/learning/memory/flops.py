"""Tokens a second from a rate of matrix products: at most, for nothing else is counted."""

from transformers import PreTrainedConfig

from tasks.learning.memory.stages import RowLengths
from tasks.learning.memory.unloaded import unloaded_model
from tasks.learning.models.forward import unwrapped
from tasks.settings.params import Params

A_PRODUCT = 2  # operations a weight and token: multiply and add


def tokens_a_second(stage: str, config: PreTrainedConfig, params: Params, lengths: RowLengths, rate: float) -> float:
    """Tokens that a stage learns from, or of evaluate reads, a second and device.

    A pass costs 2 operations a weight and token, and 2 * layers * width * length of causal attention (Kaplan et al.
    2020, "Scaling laws"). A backward pass costs two of these, where the weights learn; under adapters one. Activations
    that are computed again cost one more. DPO and KTO read a reference too; PPO reads policy, reference, critic and
    reward once for so many epochs of learning by policy and critic.
    """
    once = _operations(config, params, lengths)
    backward = 1 if params.lora.rank else 2
    learning = 1 + backward + int(params.runtime.gradient_checkpointing)
    settings = params.ppo
    has_critic = settings.estimator == "gae" and settings.critic == "separate"
    passes = {
        "evaluate": 1.0,
        "dpo": learning + 1 / params.dpo.epochs,
        "kto": learning + 3 / params.kto.epochs,
        "ppo": learning * (2 if has_critic else 1) + 4 / settings.epochs,
    }.get(stage, learning)
    return rate / (once * passes)


def _operations(config: PreTrainedConfig, params: Params, lengths: RowLengths) -> float:
    model = unwrapped(unloaded_model(config, "policy", params, trainable=False))
    text = config.get_text_config()
    weights = sum(weight.numel() for weight in model.parameters())
    if not text.tie_word_embeddings:
        weights -= model.get_input_embeddings().get_parameter("weight").numel()  # a look-up
    of_attention: int = text.num_hidden_layers * text.hidden_size * lengths.row
    return A_PRODUCT * (weights + of_attention)
