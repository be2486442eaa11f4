"""Evaluation points along training: the policy answers the same prompts at each; `evaluate` scores the answers.

Answers are saved, not weights. They are not scored here: the policy must not learn of the held-out reward model. Their
log-probabilities under the policy of that step are saved with them; those under SFT can be computed at any time.
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
from tasks.learning.training.sharded_state import Copies
from tasks.settings.params import MethodSettings, Params


class EvaluationPoints:
    """The evaluation points of one training, and the answers at each; a callback of the training loop.

    The answers of a step are sampled before the next one begins, so the checkpoint of that step does not hold them: a
    run that resumes from it samples them first, from the same weights.
    """

    def __init__(
        self,
        policy: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        settings: MethodSettings,
        params: Params,
        *,
        temperature: float,
    ) -> None:
        """Choose and encode the prompts: the first by id, a content hash, so that the choice is stable.

        Args:
            policy: answers with its current weights.
            tokenizer: its tokenizer.
            prompts: of which the first `evaluation_prompts` are answered.
            settings: of the method: number of evaluation points and of prompts at each, longest answer.
            params: seed and runtime.
            temperature: of the sampling.

        Raises:
            InputError: a prompt leaves no room for an answer.
        """
        chosen = sorted(prompts, key=lambda prompt: prompt.id)[: settings.evaluation_prompts]
        self._policy, self._tokenizer, self._settings = policy, tokenizer, settings
        self._ids = [prompt.id for prompt in chosen]
        self._prompts = encode_prompts(tokenizer, chosen, context_length(policy), settings.max_new_tokens)
        self._seed, self._max_concurrent = params.seed, params.runtime.max_concurrent_sequences
        self._temperature = temperature
        self.answers: list[Answer] = []

    def restore(self, state: Mapping[str, Any], _copies: Copies) -> None:
        """Take back the answers of a checkpoint, if it holds some."""
        self.answers = [Answer(**row) for row in state.get("answers", ())]

    @property
    def state(self) -> dict[str, list[dict[str, Any]]]:
        """What a checkpoint saves: the answers so far."""
        return {"answers": [each._asdict() for each in self.answers]}

    @property
    def copies(self) -> Copies:
        """A checkpoint saves no other weights for it."""
        return {}

    def at_step(self, step: int, num_steps: int) -> None:
        """Answer the prompts if `step` is an evaluation point without answers; all processes take part.

        Raises:
            InputError: the policy no longer gives probabilities.
        """
        points = evaluation_steps(num_steps, self._settings.evaluation_points)
        if step not in points or any(each.step == step for each in self.answers):
            return
        sample = partial(
            generate,
            tokenizer=self._tokenizer,
            prompts=self._prompts,
            max_new_tokens=self._settings.max_new_tokens,
            temperature=self._temperature,
            seed=self._seed,
            max_concurrent_sequences=self._max_concurrent,
        )
        responses = answer_in_shares(sample, self._policy, self._prompts)
        for prompt_id, response in zip(self._ids, responses, strict=True):
            logp: float = response.log_probs.double().sum().item()
            check_finite(step, {"log-probability of an answer": logp}, "the policy has diverged")
            self.answers.append(Answer(step, prompt_id, response.row.completion, logp, self._temperature))

    def write(self, stage: str) -> None:
        """Write the answers; only the main process does."""
        if processes.is_main():
            write_answers(stage, self.answers)


def evaluation_steps(num_steps: int, num_points: int) -> set[int]:
    """After which steps the evaluation points lie: evenly spaced, one before the first step, one after the last.

    None lie anywhere where `num_points` is 0.
    """
    if not num_points:
        return set()
    return {round(num_steps * part / num_points) for part in range(num_points + 1)}
