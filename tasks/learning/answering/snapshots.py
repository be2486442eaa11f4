"""The answers that the policy gave at the evaluation points of its training."""

from typing import NamedTuple

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.errors import InputError
from tasks.common.files import VALIDATED
from tasks.data.answers import answers_file, read_answers
from tasks.data.encoding.tokens import encode_prompt
from tasks.data.reasoning import references_without_reasoning
from tasks.data.records import Prompt, read_prompts
from tasks.learning.answering.likelihoods import answer_logps
from tasks.learning.answering.sampled import Sampled, as_sampled
from tasks.settings.params import Params


class Snapshot(NamedTuple):
    """The policy at an evaluation point, by its answers."""

    step: int
    prompts: list[Prompt]
    sampled: Sampled
    kl: list[float]  # to SFT, one estimate a prompt


def read_snapshots(sft: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: Params) -> list[Snapshot]:
    """Read what the candidate answered at the evaluation points, and compute its KL to SFT there.

    Raises:
        InputError: the file is missing or damaged.
    """
    kept = (references_without_reasoning(each, params.base.reasoning) for each in read_prompts(VALIDATED, "validation"))
    prompts = {prompt.id: prompt for prompt in kept}
    found, stage = [], params.align.stage
    for step, answers in read_answers(stage).items():
        own = [prompts[answer.id] for answer in answers if answer.id in prompts]
        if len(own) < len(answers):
            raise InputError(f"{answers_file(stage)} answers prompts that are not in {VALIDATED}: run dvc repro")
        asked = [encode_prompt(tokenizer, prompt.prompt) for prompt in own]
        sampled = as_sampled(sft, tokenizer, asked, [answer.tokens for answer in answers], params)
        logps = answer_logps(sft, sampled.encoded, params, answers[0].temperature)
        kl = [answer.logp - logp for answer, logp in zip(answers, logps, strict=True)]
        found.append(Snapshot(step, own, sampled, kl))
    return found
