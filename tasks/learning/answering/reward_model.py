"""The learned reward model as a reward: a function of answers like any other."""

from torch import nn
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.data.encoding.tokens import Encoded, encode_prompt
from tasks.learning.answering.likelihoods import by_batch
from tasks.learning.models.outputs import completion_scores
from tasks.rewards.answered import Answered
from tasks.settings.params import Params


class ModelReward:
    """A reward model that scores answers by their tokens."""

    def __init__(self, name: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase, params: Params) -> None:
        """Name a loaded reward model or ensemble; `tokenizer` is the one that the answers' tokens are of."""
        self._name, self._model, self._tokenizer, self._params = name, model, tokenizer, params

    @property
    def name(self) -> str:
        """The name under which its scores are reported."""
        return self._name

    def __call__(self, answered: Answered) -> list[float]:
        """Score the answers: (n,)."""
        prompts = {id(prompt): prompt for prompt in answered.prompts}  # of several answers to one, once
        asked = {key: encode_prompt(self._tokenizer, prompt) for key, prompt in prompts.items()}
        encoded = [
            Encoded(asked[id(prompt)], list(tokens))
            for prompt, tokens in zip(answered.prompts, answered.answer_ids, strict=True)
        ]
        return by_batch(lambda batch: completion_scores(self._model, batch), encoded, self._params, "evaluate: scores")
