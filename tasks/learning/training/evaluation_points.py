"""Marks along a policy's training: at each it answers the same prompts, so that `evaluate` can judge how it changed.

Answers are kept, not weights. Nothing is judged here: a policy must not know the held-out judge. Nor is KL measured:
log-probabilities under the policy of a mark are gone with it and so are kept, those under SFT can be had at any time.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.data.answers import Answer, write_answers
from tasks.data.encoding.tokens import encode_prompts
from tasks.data.records import Prompt
from tasks.learning import processes
from tasks.learning.models.loading import context_length
from tasks.learning.sampling.engines import answer_in_shares
from tasks.learning.sampling.sampler import generate
from tasks.learning.training.optimisation import check_finite
from tasks.settings.params import Dpo, Params, Ppo

PROMPTS = 128  # at most: with as many, a judge's win rate of .37 or .63 is told from a half


class Marks:
    """The marks of one run of training, and what was answered at each.

    A mark is visited when the step behind it is to begin. So the checkpoint of its own step need not hold its answers:
    a run that goes on from there answers first, with the same weights.
    """

    def __init__(
        self,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        settings: Dpo | Ppo,
        params: Params,
    ) -> None:
        """Choose and encode the prompts: the first by id, a content hash, so that the choice is stable.

        Args:
            policy: it is asked as it is at each mark.
            tokenizer: its tokenizer.
            prompts: of which `PROMPTS` are answered.
            settings: of the method: how many marks, the longest answer, and PPO's temperature.
            params: seed and runtime.

        Raises:
            InputError: a prompt leaves no room for an answer.
        """
        chosen = sorted(prompts, key=lambda prompt: prompt.id)[:PROMPTS]
        self._policy, self._tokenizer, self._settings = policy, tokenizer, settings
        self._ids = [prompt.id for prompt in chosen]
        self._asked = encode_prompts(tokenizer, chosen, context_length(policy), settings.max_new_tokens)
        self._seed, self._max_concurrent = params.seed, params.runtime.max_concurrent_sequences
        self._temperature = settings.temperature if isinstance(settings, Ppo) else 1.0
        self.answers: list[Answer] = []

    def restore(self, extra: Mapping[str, Any]) -> None:
        """Take back the answers that a checkpoint holds, where it holds some."""
        self.answers = [Answer(**row) for row in extra.get("answers", ())]

    @property
    def extra(self) -> dict[str, list[dict[str, Any]]]:
        """What a checkpoint is to hold of the marks."""
        return {"answers": [each._asdict() for each in self.answers]}

    def visit(self, step: int, steps: int) -> None:
        """Answer after so many of all steps, if that is a mark and has not been answered; all processes take part.

        Raises:
            InputError: the policy no longer gives probabilities.
        """
        if step not in places(steps, self._settings.evaluation_points) or any(
            each.step == step for each in self.answers
        ):
            return
        ask = partial(
            generate,
            self._policy,
            self._tokenizer,
            self._asked,
            max_new_tokens=self._settings.max_new_tokens,
            temperature=self._temperature,
            seed=self._seed,
            max_concurrent_sequences=self._max_concurrent,
        )
        responses = answer_in_shares(ask, self._policy, self._asked)
        for prompt_id, said in zip(self._ids, responses, strict=True):
            logp: float = said.log_probs.double().sum().item()
            check_finite(step, {"log-probability of an answer": logp}, "the policy has diverged")
            self.answers.append(Answer(step, prompt_id, said.row.completion, logp, self._temperature))

    def write(self, stage: str) -> None:
        """Write the answers; of several processes the first does it."""
        if processes.is_first():
            write_answers(stage, self.answers)


def places(steps: int, marks: int) -> set[int]:
    """After which steps the marks lie: evenly, behind one at the beginning, the last at the end."""
    return {round(steps * part / marks) for part in range(marks + 1)}
