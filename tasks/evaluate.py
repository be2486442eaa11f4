"""Reads data/validate, the models and opponent.json, writes metrics/evaluate.json and reports/evaluate/responses.jsonl.

Candidate, SFT and opponent answer the same prompts with the same seeds and decoding; the reward model scores every
answer. Arithmetic is fp32 whatever runtime.precision says: a comparison is no place to save.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.data.example import gold_score
from tasks.data.files import METRICS, MODELS, REPORTS, STATE, VALIDATED, write_json, write_jsonl
from tasks.data.records import Prompt, read_demonstrations, read_prompts
from tasks.data.tokens import Encoded, decode, encode, encode_demonstrations, encode_prompts, load_tokenizer
from tasks.errors import InputError
from tasks.judging.best_of import BestOf, best_of
from tasks.judging.compare import Resampling
from tasks.judging.metrics import Answers
from tasks.judging.opponent import Opponent, read_opponent
from tasks.judging.summary import Gold, Measured, measure, prompt_text, rows, summarise
from tasks.learning.batches import Batch, collate, micro_batches
from tasks.learning.curves import progress_bar
from tasks.learning.models import context_length, device_of, load_policy, load_reward, set_up
from tasks.learning.readings import completion_log_probs, completion_scores
from tasks.learning.rollouts import generate, stop_tokens
from tasks.params import EXAMPLE, Params
from tasks.registry import tracking
from tasks.registry.stages import materialise
from tasks.stage import main

RESPONSES = REPORTS / "evaluate" / "responses.jsonl"
SAMPLES_TRACKED = 100
LARGEST_EXPONENT = 700.0  # exp of more is no float


class Spoken(NamedTuple):
    """What a policy answered to n prompts, in their order."""

    encoded: list[Encoded]  # prompt and answer as sampled
    texts: list[str]
    ended: list[bool]  # by the policy itself, before the limit


class Compared(NamedTuple):
    """What was measured on n prompts."""

    models: dict[str, Measured]  # candidate, sft, opponent
    kl: list[float]  # KL(candidate || SFT) in nats, one estimate a prompt
    perplexity: dict[str, float | None]  # of the demonstrated answers, under candidate and SFT
    best_of_sft: list[BestOf]


def evaluate(params: Params) -> None:
    """Compare the aligned policy with SFT and with the opponent.

    Raises:
        InputError: there is no prompt to answer, or a model, a data file or opponent.json is missing or damaged.
    """
    prompts, opponent, settings = choose_prompts(params), read_opponent(), params.evaluate
    _check_models(params)
    set_up(params)
    with tracking.run("evaluate", params, inputs=[VALIDATED / "prompts.jsonl"]) as run:
        compared = _compare(prompts, opponent, params)
        models, kl = compared.models, compared.kl
        resampling = Resampling(settings.bootstrap, settings.confidence, params.seed)
        figures = summarise(prompts, **compared._asdict(), resampling=resampling)
        figures["opponent"] = {"name": opponent.name, "version": opponent.version} | figures["opponent"]
        responses = list(rows(prompts, models, kl if settings.temperature else None))
        write_jsonl(RESPONSES, responses)
        write_json(METRICS / "evaluate.json", figures)
        run.summary(figures)
        run.table("samples", [_readable(row) for row in responses[:SAMPLES_TRACKED]])


def choose_prompts(params: Params) -> list[Prompt]:
    """Take the test split, or `evaluate.prompts` of it: the first by id, a content hash, so that the choice is stable.

    Raises:
        InputError: the test split is empty.
    """
    prompts = sorted(read_prompts(VALIDATED, "test"), key=lambda prompt: prompt.id)[: params.evaluate.prompts]
    if not prompts:
        cure = "raise prepare.split.test in params.yaml or give more prompts"
        raise InputError(f"{VALIDATED / 'prompts.jsonl'} has no prompt in the test split: {cure}")
    return prompts


def _readable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without nesting, for a table: the prompt, then each model's answer and its reward."""
    columns = {"prompt": row["prompt"][-1]["content"]}
    for name in ("candidate", "sft", "opponent"):
        columns |= {name: row[name]["answer"], f"{name} reward": row[name]["reward"]}
    return columns


def _check_models(params: Params) -> None:
    """Say at once what is missing, not when all prompts have been answered."""
    for name in (params.align.method, "sft", "reward", "judge"):
        if not (MODELS / name).is_dir():
            raise InputError(f"{MODELS / name} does not exist: run the stage that writes it (dvc repro)")


def _compare(prompts: Sequence[Prompt], opponent: Opponent, params: Params) -> Compared:
    """Judge candidate, SFT and opponent."""
    tokenizer = load_tokenizer(MODELS / "sft")  # the candidate's and the reward model's too: both come from SFT
    candidate, sft = (load_policy(MODELS / name, params, trainable=False) for name in (params.align.method, "sft"))
    spoken = {
        "candidate": _respond("candidate", candidate, tokenizer, prompts, params),
        "sft": _respond("sft", sft, tokenizer, prompts, params),
    }
    kl = _divergence(candidate, sft, tokenizer, spoken["candidate"], params)
    perplexity = {
        "candidate": _perplexity(candidate, tokenizer, params),
        "sft": _perplexity(sft, tokenizer, params),
    }
    several = _respond("sft, best of n", sft, tokenizer, prompts, params, each=params.evaluate.best_of)
    del candidate, sft
    if opponent.policy:
        spoken["opponent"] = _respond_as_champion(opponent.policy, tokenizer, prompts, params)
    reward_model, held_out = (load_reward(MODELS / name, params) for name in ("reward", "judge"))
    gold = gold_score if all(prompt.source == EXAMPLE for prompt in prompts) else None
    models = {
        name: measure(
            prompts,
            _scored(said, reward_model, tokenizer, params),
            _scores(said, held_out, tokenizer, params),
            gold,
        )
        for name, said in spoken.items()
    }
    yardstick = _best_of(prompts, _scored(several, reward_model, tokenizer, params), gold, params.evaluate.best_of)
    return Compared(models | {"opponent": models.get("opponent", models["sft"])}, kl, perplexity, yardstick)


def _respond(
    name: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: Params,
    *,
    each: int = 1,
) -> Spoken:
    """Answer every prompt, `each` times side by side."""
    settings = params.evaluate
    encoded = encode_prompts(tokenizer, prompts, context_length(policy), settings.max_new_tokens)
    asked = [prompt for prompt in encoded for _ in range(each)]
    answers = _sample(name, policy, tokenizer, asked, temperature=settings.temperature, params=params)
    stops = stop_tokens(policy, tokenizer)
    return Spoken(
        [Encoded(*pair) for pair in zip(asked, answers, strict=True)],
        [decode(tokenizer, answer) for answer in answers],
        [answer[-1] in stops for answer in answers],
    )


def _best_of(prompts: Sequence[Prompt], answers: Answers, gold: Gold | None, each: int) -> list[BestOf]:
    """Measure the best of n answers, `each` of which lie side by side for a prompt."""
    places = [range(start, start + each) for start in range(0, len(answers.texts), each)]
    known = [
        [gold(prompt_text(prompt), answers.texts[place]) for place in own]
        for prompt, own in zip(prompts, places, strict=True)
        if gold
    ]
    return best_of([[answers.rewards[place] for place in own] for own in places], known or None)


def _respond_as_champion(
    policy_hash: str, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], params: Params
) -> Spoken:
    """Bring the champion back from DVC's cache and have it answer; its answers count in the tokens of `tokenizer`."""
    STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STATE) as workplace:
        folder = Path(workplace) / "opponent"
        materialise(policy_hash, folder)
        own = load_tokenizer(folder)
        spoken = _respond("opponent", load_policy(folder, params, trainable=False), own, prompts, params)
    if own.get_vocab() == tokenizer.get_vocab():
        return spoken
    return _translated(spoken, tokenizer, prompts)  # it comes from another base model


def _translated(spoken: Spoken, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> Spoken:
    """Write the answers in the tokens of another tokenizer; one that did not end gets no end-of-sequence token."""
    # To the other model this token was a text like any; here it ends the answer.
    texts = [text.split(str(tokenizer.eos_token))[0] for text in spoken.texts]
    encoded = [encode(tokenizer, prompt.prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    cut = [
        row if ended else row._replace(completion=row.completion[:-1])
        for row, ended in zip(encoded, spoken.ended, strict=True)
    ]
    return spoken._replace(encoded=cut)


def _divergence(
    candidate: PreTrainedModel,
    sft: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spoken: Spoken,
    params: Params,
) -> list[float]:
    """Unbiased estimates of KL(candidate || SFT) at the sampling temperature: log-ratios of sampled answers.

    The likeliest answers of greedy decoding are no sample: others are drawn for it, at temperature 1.
    """
    temperature, samples = params.evaluate.temperature, spoken.encoded
    if temperature == 0:
        temperature, asked = 1.0, [row.prompt for row in samples]
        drawn = _sample("KL", candidate, tokenizer, asked, temperature=temperature, params=params)
        samples = [Encoded(*pair) for pair in zip(asked, drawn, strict=True)]

    def log_ratios(batch: Batch) -> Tensor:
        ratios = completion_log_probs(candidate, batch, temperature) - completion_log_probs(sft, batch, temperature)
        return ratios.double().sum(dim=1)

    return _by_batch(log_ratios, samples, tokenizer, params)


def _perplexity(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: Params) -> float | None:
    """Perplexity of the demonstrated answers of the test split; None where there are none.

    A policy that was pushed away from good language finds it surprising, whatever the reward model says.
    """
    texts = encode_demonstrations(tokenizer, read_demonstrations(VALIDATED, "test"), context_length(policy))
    if not texts:
        return None
    log_probs = _by_batch(
        lambda batch: completion_log_probs(policy, batch).double().sum(dim=1), texts, tokenizer, params
    )
    nats = -sum(log_probs) / sum(len(text.completion) for text in texts)
    return math.exp(nats) if nats < LARGEST_EXPONENT else math.inf


def _scored(
    spoken: Spoken, reward_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: Params
) -> Answers:
    rewards = _scores(spoken, reward_model, tokenizer, params)
    return Answers(spoken.texts, [len(row.completion) for row in spoken.encoded], spoken.ended, rewards)


def _scores(spoken: Spoken, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: Params) -> list[float]:
    return _by_batch(lambda batch: completion_scores(model, batch), spoken.encoded, tokenizer, params)


@torch.inference_mode()
def _by_batch(
    measure: Callable[[Batch], Tensor], encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, params: Params
) -> list[float]:
    """One number a row: `measure` maps a batch of B rows to (B,)."""
    device, values = device_of(params), [0.0] * len(encoded)
    for group in micro_batches(range(len(encoded)), [row.length for row in encoded], params.runtime.tokens_per_pass):
        found = measure(collate([encoded[number] for number in group], device)).tolist()
        for number, value in zip(group, found, strict=True):
            values[number] = value
    return values


def _sample(
    name: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Sequence[int]],
    *,
    temperature: float,
    params: Params,
) -> list[list[int]]:
    settings = params.evaluate
    with progress_bar(f"evaluate: {name}", len(asked), "answer") as bar:
        responses = generate(
            policy,
            tokenizer,
            asked,
            max_new_tokens=settings.max_new_tokens,
            temperature=temperature,
            seed=params.seed,
            slots=params.runtime.slots,
            on_progress=bar.update,
        )
    return [response.row.completion for response in responses]


if __name__ == "__main__":
    main(evaluate)
