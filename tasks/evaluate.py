"""Reads data/validate, the models, the candidate's answers along its way and opponent.json, writes figures and answers.

Candidate, SFT and opponent answer the same prompts with the same seeds and decoding; the reward model and the held-out
judge score every answer, those of the way too. Arithmetic is fp32 whatever runtime.precision says: a comparison is no
place to save.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from tasks.common.errors import InputError
from tasks.common.files import METRICS, MODELS, REPORTS, STATE, VALIDATED, workplace, write_json, write_jsonl
from tasks.common.progress import Bar, along
from tasks.data.answers import answers_file, read_answers
from tasks.data.encoding.encoded import encoded_demonstrations
from tasks.data.encoding.tokens import Encoded, decode, encode, encode_prompt, encode_prompts, load_tokenizer
from tasks.data.example import gold_score
from tasks.data.records import Prompt, read_prompts
from tasks.data.splits import root_id
from tasks.evaluation.best_of import BestOf, best_of
from tasks.evaluation.compare import Resampling
from tasks.evaluation.llm_judge import comparisons
from tasks.evaluation.measured import Gold, Measured, Models, measure, prompt_text
from tasks.evaluation.metrics import Answers
from tasks.evaluation.opponent import Opponent, read_opponent
from tasks.evaluation.over_optimisation import GOLD, HELD_OUT, PROXY, Mark
from tasks.evaluation.over_optimisation import rows as mark_rows
from tasks.evaluation.summary import rounded, rows, summarise
from tasks.learning.batches import Batch, collate, micro_batches
from tasks.learning.models.loading import context_length, device_of, load_policy, load_reward, set_up
from tasks.learning.models.outputs import completion_log_probs, completion_scores
from tasks.learning.sampling.sampler import generate, stop_tokens
from tasks.registry.dvc_outputs.cache import materialise
from tasks.registry.mlflow_runs import tracking
from tasks.settings.params import EXAMPLE, LlmJudge, Params
from tasks.stage import main

RESPONSES, MARKS, LLM_JUDGE = (REPORTS / "evaluate" / f"{name}.jsonl" for name in ("responses", "marks", "llm_judge"))
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
    marks: list[Mark]


class Judges(NamedTuple):
    """Who scores answers."""

    reward: PreTrainedModel
    held_out: PreTrainedModel
    gold: Gold | None  # None: the prompts have no known rule


class Visited(NamedTuple):
    """What a policy answered at a mark of its training."""

    step: int
    prompts: list[Prompt]
    spoken: Spoken
    kl: list[float]  # to SFT, one estimate a prompt


def evaluate(params: Params) -> None:
    """Compare the aligned policy with SFT and with the opponent.

    Raises:
        InputError: there is no prompt to answer, or a model, a data file or opponent.json is missing or damaged, or
            the LLM judge's server refuses.
        ConnectionError: the LLM judge's server cannot be reached; TimeoutError: it does not answer.
    """
    prompts, opponent, settings = choose_prompts(params), read_opponent(), params.evaluate
    _check_models(params)
    if settings.llm_judge:
        comparisons.check(settings.llm_judge)
    set_up(params)
    with tracking.run("evaluate", params, inputs=[VALIDATED / "prompts.jsonl"]) as run:
        compared = _compare(prompts, opponent, params)
        models, kl = compared.models, compared.kl
        conversations = tuple(root_id(prompt.prompt) for prompt in prompts)
        resampling = Resampling(settings.bootstrap, settings.confidence, params.seed, conversations)
        figures = summarise(prompts, **compared._asdict(), resampling=resampling)
        figures["opponent"] = {"name": opponent.name, "version": opponent.version} | figures["opponent"]
        if settings.llm_judge:
            figures["llm_judge"] = _ask_llm_judge(settings.llm_judge, prompts, models, resampling)
        responses = list(rows(prompts, models, kl if settings.temperature else None))
        write_jsonl(RESPONSES, responses)
        write_jsonl(MARKS, map(rounded, mark_rows(compared.marks)))
        write_json(METRICS / "evaluate.json", figures)
        run.summary(figures)
        run.table("samples", [_readable(row) for row in responses[:SAMPLES_TRACKED]])


def _ask_llm_judge(
    judge: LlmJudge, prompts: Sequence[Prompt], models: Models, resampling: Resampling
) -> dict[str, Any]:
    """Have a language model compare candidate and opponent, write down what it said, and sum it up."""
    asked = prompts[: judge.prompts]
    ours, theirs = (models[name].answers.texts[: len(asked)] for name in ("candidate", "opponent"))
    with Bar("evaluate: LLM judge", len(asked), "prompt") as bar:
        answers = comparisons.ask(judge, asked, ours, theirs, bar.update)
    write_jsonl(LLM_JUDGE, comparisons.rows(answers))
    return rounded(comparisons.figures(answers, judge.model, resampling.at(range(len(asked)))))


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
    for name in (params.align.method, "sft", "reward", "held_out_reward"):
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
    visited = _visited(sft, tokenizer, params)
    del candidate, sft
    if opponent.policy:
        spoken["opponent"] = _respond_as_champion(opponent.policy, tokenizer, prompts, params)
    judges = Judges(
        load_reward(MODELS / "reward", params),
        load_reward(MODELS / "held_out_reward", params),
        gold_score if all(prompt.source == EXAMPLE for prompt in prompts) else None,
    )
    models = {
        name: measure(
            prompts,
            _scored(said, judges.reward, params),
            _scores(said, judges.held_out, params),
            judges.gold,
        )
        for name, said in spoken.items()
    }
    yardstick = best_of(_judged_in_groups(prompts, several, judges, params), models["sft"].scores)
    marks = []
    for step, asked, said, its_kl in visited:
        scores = _judged(asked, said, judges, params)
        conversations = tuple(root_id(prompt.prompt) for prompt in asked)
        marks.append(Mark(step, [prompt.id for prompt in asked], said.texts, its_kl, scores, conversations))
    return Compared(models | {"opponent": models.get("opponent", models["sft"])}, kl, perplexity, yardstick, marks)


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
    return _spoken(policy, tokenizer, asked, answers)


def _spoken(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[list[int]],
    answers: Sequence[list[int]],
) -> Spoken:
    """Put tokens and texts together; the stop tokens of `model` say what ended."""
    stops = stop_tokens(model, tokenizer)
    return Spoken(
        [Encoded(*pair) for pair in zip(asked, answers, strict=True)],
        [decode(tokenizer, answer) for answer in answers],
        [answer[-1] in stops for answer in answers],
    )


def _judged(prompts: Sequence[Prompt], spoken: Spoken, judges: Judges, params: Params) -> dict[str, list[float]]:
    """What the reward model, the held-out judge and the known rule, where there is one, make of every answer."""
    gold, pairs = judges.gold, zip(prompts, spoken.texts, strict=True)
    return {
        PROXY: _scores(spoken, judges.reward, params),
        HELD_OUT: _scores(spoken, judges.held_out, params),
        **({GOLD: [gold(prompt_text(prompt), text) for prompt, text in pairs]} if gold else {}),
    }


def _judged_in_groups(
    prompts: Sequence[Prompt], spoken: Spoken, judges: Judges, params: Params
) -> dict[str, list[list[float]]]:
    """The same of n answers to each prompt that lie side by side: n scores a prompt."""
    each = params.evaluate.best_of
    flat = _judged([prompt for prompt in prompts for _ in range(each)], spoken, judges, params)
    return {name: [scores[at : at + each] for at in range(0, len(scores), each)] for name, scores in flat.items()}


def _visited(sft: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: Params) -> list[Visited]:
    """Read what the candidate answered at the marks of its training, and measure how far from SFT it was.

    Raises:
        InputError: the file is missing or damaged.
    """
    prompts = {prompt.id: prompt for prompt in read_prompts(VALIDATED, "validation")}
    visited, method = [], params.align.method
    for step, answers in read_answers(method).items():
        own = [prompts[answer.id] for answer in answers if answer.id in prompts]
        if len(own) < len(answers):
            raise InputError(f"{answers_file(method)} answers prompts that are not in {VALIDATED}: run dvc repro")
        asked = [encode_prompt(tokenizer, prompt.prompt) for prompt in own]
        spoken = _spoken(sft, tokenizer, asked, [answer.tokens for answer in answers])
        logps = _logps(sft, spoken.encoded, params, answers[0].temperature)
        kl = [answer.logp - logp for answer, logp in zip(answers, logps, strict=True)]
        visited.append(Visited(step, own, spoken, kl))
    return visited


def _logps(
    policy: PreTrainedModel,
    rows: Sequence[Encoded],
    params: Params,
    temperature: float = 1.0,
) -> list[float]:
    """Log-probability of every answer, summed over its tokens."""

    def measure(batch: Batch) -> Tensor:
        return completion_log_probs(policy, batch, temperature).double().sum(dim=1)

    return _by_batch(measure, rows, params, "evaluate: log-probabilities")


def _respond_as_champion(
    policy_hash: str, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], params: Params
) -> Spoken:
    """Bring the champion back from DVC's cache and have it answer; its answers count in the tokens of `tokenizer`."""
    with workplace(STATE / "opponent") as found:
        folder = found / "opponent"
        materialise(policy_hash, folder, what="the champion")
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
    ours, theirs = (_logps(policy, samples, params, temperature) for policy in (candidate, sft))
    return [own - other for own, other in zip(ours, theirs, strict=True)]


def _perplexity(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: Params) -> float | None:
    """Perplexity of the demonstrated answers of the test split; None where there are none.

    A policy that was pushed away from good language finds it surprising, whatever the reward model says.
    """
    texts = encoded_demonstrations(VALIDATED, "test", tokenizer, context_length(policy))
    if not texts:
        return None
    nats = -sum(_logps(policy, texts, params)) / int(texts.counts[:, 1].sum())
    return math.exp(nats) if nats < LARGEST_EXPONENT else math.inf


def _scored(spoken: Spoken, reward_model: PreTrainedModel, params: Params) -> Answers:
    rewards = _scores(spoken, reward_model, params)
    return Answers(spoken.texts, [len(row.completion) for row in spoken.encoded], spoken.ended, rewards)


def _scores(spoken: Spoken, model: PreTrainedModel, params: Params) -> list[float]:
    return _by_batch(lambda batch: completion_scores(model, batch), spoken.encoded, params, "evaluate: scores")


@torch.inference_mode()
def _by_batch(
    measure: Callable[[Batch], Tensor], encoded: Sequence[Encoded], params: Params, title: str
) -> list[float]:
    """One number a row: `measure` maps a batch of B rows to (B,); `title` names the progress bar."""
    device, values = device_of(params), [0.0] * len(encoded)
    lengths = [row.length for row in encoded]
    for group in along(
        list(micro_batches(range(len(encoded)), lengths, params.runtime.max_tokens_per_micro_batch)), title, "batch"
    ):
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
    with Bar(f"evaluate: {name}", len(asked), "answer") as bar:
        responses = generate(
            policy,
            tokenizer,
            asked,
            max_new_tokens=settings.max_new_tokens,
            temperature=temperature,
            seed=params.seed,
            max_concurrent_sequences=params.runtime.max_concurrent_sequences,
            on_progress=bar.update,
        )
    return [response.row.completion for response in responses]


if __name__ == "__main__":
    main(evaluate)
