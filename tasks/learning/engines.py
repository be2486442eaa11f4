"""The rollout engines: who answers PPO's prompts."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from torch import nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.learning import continuous, rollouts
from tasks.learning.rollouts import Response


class Engine(Protocol):
    """Answers prompts by sampling at a temperature and nothing else, up to the first of the model's stop tokens.

    A pure function of its arguments, which are described at `rollouts.generate`: the model is as it was afterwards, and
    so is torch's random state. The log-probabilities it gives are of the distribution it sampled from.
    """

    def __call__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        slots: int,
        numbers: Sequence[int] | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[Response]:
        """Answer some of the prompts, in their order."""


def engine_of(name: Literal["slots", "continuous"]) -> Engine:
    """The engine that the setting ppo.engine names."""
    match name:
        case "slots":
            return rollouts.generate
        case "continuous":
            return continuous.generate
