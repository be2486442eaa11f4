"""What orders the answers to a prompt: a reward by its scores, or an LLM judge by comparing each with each."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, Protocol

from pydantic import ValidationError

from tasks.common.errors import InputError
from tasks.common.files import MODELS, VALIDATED, hash_files
from tasks.common.progress import Bar
from tasks.data.encoding.tokens import encode, load_tokenizer
from tasks.data.reasoning import references_without_reasoning, without_reasoning
from tasks.data.records import Message, Prompt, read_prompts
from tasks.data.splits import content_id
from tasks.evaluation.llm_judge import comparisons
from tasks.rewards.answered import Reward, answered
from tasks.rewards.copies import TRAINING, read_copies
from tasks.settings.base import Reasoning
from tasks.settings.params import LlmJudge, Params

BY_REWARD, BY_JUDGE = "reward:", "judge:"  # what the names of annotators begin with
OPTION = "--judge"


class Group(NamedTuple):
    """A prompt and n different answers to it, with their reasoning."""

    prompt: Sequence[Message]
    answers: Sequence[str]


class Labeller(Protocol):
    """Something that scores the answers to a prompt: the higher, the better."""

    @property
    def annotator(self) -> str:
        """Its name in the pairs."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Say what it is, so that it can be found again."""
        ...

    def can_score(self, group: Group) -> bool:
        """Whether it is given all that it may need of a prompt."""
        ...

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Give a number to every answer of every group."""
        ...


class ByReward:
    """A reward of rewards.training."""

    def __init__(self, name: str | None, params: Params) -> None:
        """Find the reward, the first where none is named, and the prompts' rows that it may ask for.

        Raises:
            InputError: nothing in rewards.training has this name, or its model or file is not there.
        """
        from tasks.learning.answering.reward_model import ModelReward
        from tasks.learning.models.loading import load_scorer, set_up

        named = {reward.name: reward for reward in params.rewards.training}
        chosen = named.get(name or next(iter(named)))
        if chosen is None:
            raise InputError(f"--reward {name} is not in rewards.training: choose one of {', '.join(named)}")
        self._is_model, self.annotator = chosen.is_model, BY_REWARD + chosen.name
        self._reasoning = params.base.reasoning
        self._tokenizer = load_tokenizer(MODELS / "sft")
        self._prompts = {content_id(prompt.prompt): prompt for prompt in read_prompts(VALIDATED)}
        set_up(params)
        self._reward: Reward
        if chosen.is_model:
            file = MODELS / "reward"
            self._reward = ModelReward(chosen.name, load_scorer(file, params), self._tokenizer, params)
        else:
            file = TRAINING / f"{chosen.name}.py"
            self._reward = next(each for each in read_copies(TRAINING) if each.name == chosen.name)
        self._identity = {"source": chosen.source, "options": chosen.options, "sha256": hash_files(file)}

    def identity(self) -> Mapping[str, Any]:
        """Give its source, its options and the hash of its model or file."""
        return self._identity

    def can_score(self, group: Group) -> bool:
        """A model can score anything; a function may need the references and columns of the prompt's row."""
        return self._is_model or content_id(group.prompt) in self._prompts

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Score all answers.

        Raises:
            InputError: the reward fails.
        """
        prompts, texts, tokens = [], [], []
        for group in groups:
            found = self._prompts.get(content_id(group.prompt)) or _without_row(group)
            row = references_without_reasoning(found, self._reasoning)
            for text in group.answers:
                prompts.append(row)
                texts.append(without_reasoning(text, self._reasoning))
                tokens.append(encode(self._tokenizer, group.prompt, text).completion)
        scores = iter(self._reward(answered(prompts, texts, tokens)))
        return [[next(scores) for _ in group.answers] for group in groups]


class ByJudge:
    """A language model behind an OpenAI-compatible server."""

    def __init__(self, url: str, model: str, reasoning: Reasoning | None = None) -> None:
        """Ask it for an easy verdict.

        Args:
            url: of the server.
            model: its name there.
            reasoning: the marks of what it is not shown; None: it is shown all.

        Raises:
            InputError: the address is none, the server refuses, or the model gives no verdict.
            ConnectionError: the server cannot be reached; TimeoutError: it does not answer.
        """
        try:
            self._judge, self.annotator = LlmJudge(url=url, model=model, prompts=None), BY_JUDGE + model
        except ValidationError as error:
            fault = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise InputError(f"{OPTION} names no server that can be asked: {fault}") from None
        self._reasoning = reasoning
        comparisons.check(self._judge, OPTION)

    def identity(self) -> Mapping[str, Any]:
        """Give its model's name; the address is not part of what it is."""
        return {"model": self._judge.model}

    def can_score(self, _group: Group) -> bool:
        """It reads prompts and answers alone."""
        return True

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Give each answer its mean outcome against the others: 1 better in both orders, 0 worse in both.

        A half counts where the orders disagree, and where there is no verdict.

        Raises:
            InputError: the server refuses.
            ConnectionError: it cannot be reached; TimeoutError: it does not answer. Its replies so far are saved.
        """
        places = [
            (number, *pair)
            for number, group in enumerate(groups)
            for pair in combinations(range(len(group.answers)), 2)
        ]
        shown = [[without_reasoning(text, self._reasoning) for text in group.answers] for group in groups]
        with Bar("label: judge", len(places), "pair") as bar:
            found = comparisons.ask(
                self._judge,
                [_without_row(groups[number]) for number, _, _ in places],
                [shown[number][first] for number, first, _ in places],
                [shown[number][second] for number, _, second in places],
                bar.update,
                setting=OPTION,
            )
        scores = [[0.0] * len(group.answers) for group in groups]
        for (number, first, second), comparison in zip(places, found, strict=True):
            outcome = 0.5 if comparison.outcome is None else comparison.outcome
            others = len(groups[number].answers) - 1
            scores[number][first] += outcome / others
            scores[number][second] += (1 - outcome) / others
        return scores


def _without_row(group: Group) -> Prompt:
    prompt = list(group.prompt)
    return Prompt(content_id(prompt), "train", "", 0, prompt, [])
