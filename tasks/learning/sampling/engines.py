"""The rollout engines: who answers PPO's prompts."""

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Protocol

from torch import nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.learning import processes
from tasks.learning.models.forward import compute_device
from tasks.learning.sampling import continuous_batching, sampler
from tasks.learning.sampling.copies import sampled_from
from tasks.learning.sampling.sampler import Response
from tasks.learning.sampling.vllm.engine import VllmEngine
from tasks.settings.choices import Engine as EngineName
from tasks.settings.params import Runtime


class Engine(Protocol):
    """Answers prompts by sampling at a temperature and nothing else, up to the first of the model's stop tokens.

    A pure function of its arguments, which are described at `sampler.generate`: the model is as it was afterwards, and
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
        max_concurrent_sequences: int,
        indices: Sequence[int] | None = None,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[Response]:
        """Answer some of the prompts, in their order."""


def engine_of(name: EngineName, runtime: Runtime) -> Engine:
    """The engine that the setting ppo.engine names."""
    match name:
        case "builtin":
            return sampler.generate
        case "continuous":
            return continuous_batching.generate
        case "vllm":
            return VllmEngine(runtime)


def answer_in_shares(
    ask: Callable[..., list[Response]],
    policy: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    by_main: bool = False,
) -> list[Response]:
    """Have every process of the run answer its share of the prompts, and give all of them all responses, in order.

    Args:
        ask: an engine with all arguments but the model and the `indices` of the prompts to answer.
        policy: the model that is sampled from, sharded or not.
        prompts: all that are asked.
        by_main: the main process answers all: it has a server, which does so side by side.
    """
    mine = sorted(processes.share(range(len(prompts)), [len(prompt) for prompt in prompts]))
    if by_main:
        mine = list(range(len(prompts))) if processes.is_main() else []
    with sampled_from(policy) as model:
        responses = ask(model, indices=mine)
    numbered = processes.gathered(list(zip(mine, responses, strict=True)), compute_device(policy))
    return [response for _, response in sorted(numbered, key=itemgetter(0))]
