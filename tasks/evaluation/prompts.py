"""The prompts of an evaluation."""

from collections.abc import Sequence

from tasks.common.errors import InputError
from tasks.common.files import VALIDATED
from tasks.data.reasoning import references_without_reasoning
from tasks.data.records import Prompt, read_prompts
from tasks.data.splits import root_id
from tasks.settings.params import Params


def choose_prompts(params: Params) -> list[Prompt]:
    """Take the test split, or `evaluate.prompts` of it: the first by id, a content hash, so that the choice is stable.

    Raises:
        InputError: the test split is empty.
    """
    prompts = sorted(read_prompts(VALIDATED, "test"), key=lambda prompt: prompt.id)[: params.evaluate.prompts]
    if not prompts:
        cure = "raise prepare.split.test in params.yaml or give more prompts"
        raise InputError(f"{VALIDATED / 'prompts.jsonl'} has no prompt in the test split: {cure}")
    return [references_without_reasoning(prompt, params.base.reasoning) for prompt in prompts]


def conversations_of(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """Give the conversation that each prompt is a turn of."""
    return tuple(root_id(prompt.prompt) for prompt in prompts)
