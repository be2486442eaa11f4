"""Everything that an evaluation asks of policies: the answers of candidate, SFT and champion, KL and perplexity."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.errors import InputError
from tasks.common.files import MODELS
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import Prompt
from tasks.learning.answering.likelihoods import kl_to_sft, perplexity
from tasks.learning.answering.sampled import Sampled, answer, in_tokens_of
from tasks.learning.answering.snapshots import Snapshot, read_snapshots
from tasks.learning.models.loading import load_policy
from tasks.settings.params import Params


class ComparedAnswers(NamedTuple):
    """What policies answered to n prompts; all answers are in the tokens of SFT's tokenizer."""

    by_model: dict[str, Sampled]  # candidate, sft, and opponent where it is a champion
    best_of: Sampled | None  # evaluate.best_of answers of SFT to each prompt, side by side; None where that is 1
    kl: list[float]  # KL(candidate || SFT) in nats, one estimate a prompt
    perplexity: dict[str, float | None]  # of the demonstrated answers, under candidate and SFT
    snapshots: list[Snapshot]  # the candidate at the evaluation points of its training


def compare_answers(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, champion: Path | None, params: Params
) -> ComparedAnswers:
    """Have candidate, SFT and champion answer the same prompts with the same seeds and decoding.

    Args:
        prompts: n prompts.
        tokenizer: of SFT, and so of the candidate and of the reward models, which come from it.
        champion: the folder of the opponent's policy; None: SFT is the opponent.
        params: models, decoding and runtime.

    Raises:
        InputError: a prompt leaves no room for an answer, or a file is damaged.
    """
    candidate, sft = (load_policy(MODELS / name, params, trainable=False) for name in (params.align.stage, "sft"))
    answers = {
        "candidate": answer("candidate", candidate, tokenizer, prompts, params),
        "sft": answer("sft", sft, tokenizer, prompts, params),
    }
    kl = kl_to_sft(candidate, sft, tokenizer, answers["candidate"], params)
    perplexities = {
        "candidate": perplexity(candidate, tokenizer, params),
        "sft": perplexity(sft, tokenizer, params),
    }
    each = params.evaluate.best_of
    best_of = answer("sft, best of n", sft, tokenizer, prompts, params, per_prompt=each) if each > 1 else None
    snapshots = read_snapshots(sft, tokenizer, params)
    del candidate, sft
    if champion:
        answers["opponent"] = _champion_answers(champion, tokenizer, prompts, params)
    return ComparedAnswers(answers, best_of, kl, perplexities, snapshots)


def _champion_answers(
    folder: Path, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], params: Params
) -> Sampled:
    own = load_tokenizer(folder)
    try:
        sampled = answer("opponent", load_policy(folder, params, trainable=False), own, prompts, params)
    except InputError as error:  # its context may be shorter than that of the models trained here
        raise InputError(f"the champion, which the candidate is compared with: {error}") from None
    if own.get_vocab() == tokenizer.get_vocab():
        return sampled
    return in_tokens_of(tokenizer, sampled, prompts)  # it comes from another base model
