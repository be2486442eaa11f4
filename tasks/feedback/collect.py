"""Answers of a policy to prompts of the training split, with a manifest that says where they come from."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.common.errors import InputError
from tasks.common.files import STATE, VALIDATED, read_json, read_jsonl, replacing, write_json, write_jsonl
from tasks.common.progress import Bar
from tasks.data.encoding.tokens import encode_prompts, load_tokenizer
from tasks.data.reasoning import full_text
from tasks.data.records import Prompt, read_prompts
from tasks.data.sources.feedback import ANSWERS, MANIFEST
from tasks.learning.seeds import seed_for
from tasks.settings.params import Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

PROMPTS_AT_ONCE = 64  # and then they are saved: a killed command loses no more


class Policy(NamedTuple):
    """Who answers."""

    name: str  # as the command named it: sft, champion, 3
    version: int | None  # in the registry
    md5: str  # of its folder, as DVC has it
    folder: Path


class Sampling(NamedTuple):
    """How answers are sampled."""

    answers: int  # a prompt
    temperature: float
    max_new_tokens: int
    seed: int


def collect(folder: Path, policy: Policy, sampling: Sampling, prompts: int | None, params: Params) -> dict[str, Any]:
    """Have a policy answer prompts of the training split; write answers and manifest into a folder.

    The same arguments give the same bytes. After a kill the same command continues; where it has finished, it does
    nothing.

    Args:
        folder: a new one.
        policy: who answers.
        sampling: how.
        prompts: at most so many, the first by id; None: all.
        params: the runtime.

    Returns:
        The manifest.

    Raises:
        InputError: the folder holds something else, there is no prompt, or one leaves no room for an answer.
    """
    asked = sorted(read_prompts(VALIDATED, "train"), key=lambda prompt: prompt.id)[:prompts]
    if not asked:
        raise InputError(f"{VALIDATED / 'prompts.jsonl'} has no prompt in the training split: give prompts")
    manifest = {
        "policy": {"name": policy.name, "version": policy.version, "md5": policy.md5},
        "prompts": {"split": "train", "count": len(asked), "sha256": _hash([prompt._asdict() for prompt in asked])},
        "sampling": sampling._asdict(),
    }
    if folder.exists():
        if (folder / MANIFEST).is_file() and read_json(folder / MANIFEST) == manifest:
            return manifest
        raise InputError(f"{folder} exists, and holds no answers of these settings: name a new folder")
    saved = STATE / "collect" / _hash(manifest)
    with replacing(folder) as draft:
        draft.mkdir()
        write_jsonl(draft / ANSWERS, _rows(asked, policy, sampling, params, saved))
        write_json(draft / MANIFEST, manifest)
    shutil.rmtree(saved)
    return manifest


def _rows(
    prompts: Sequence[Prompt], policy: Policy, sampling: Sampling, params: Params, saved: Path
) -> Iterator[dict[str, Any]]:
    """Give a row a prompt; each share is saved once it is answered, and read where an earlier command saved it."""
    from tasks.learning.models.loading import load_policy, set_up

    set_up(params)
    model, tokenizer = load_policy(policy.folder, params, trainable=False), load_tokenizer(policy.folder)
    with Bar("collect: answers", len(prompts), "prompt") as bar:
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            share, file = prompts[start : start + PROMPTS_AT_ONCE], saved / f"{start}.jsonl"
            if not file.exists():
                own = sampling._replace(seed=seed_for(sampling.seed, "collect", start))
                write_jsonl(file, _answer(share, model, tokenizer, own, params))
            yield from read_jsonl(file)
            bar.update(len(share))


def _answer(
    prompts: Sequence[Prompt],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    sampling: Sampling,
    params: Params,
) -> list[dict[str, Any]]:
    from tasks.learning.models.loading import context_length
    from tasks.learning.sampling.sampler import generate, stop_tokens

    encoded = encode_prompts(tokenizer, prompts, context_length(model), sampling.max_new_tokens)
    responses = generate(
        model,
        tokenizer,
        [prompt for prompt in encoded for _ in range(sampling.answers)],
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed,
        max_concurrent_sequences=params.runtime.max_concurrent_sequences,
    )
    tokens = [response.row.completion for response in responses]
    stops = stop_tokens(model, tokenizer)
    answers = [
        {"text": full_text(tokenizer, each, params.base.reasoning), "ended": each[-1] in stops} for each in tokens
    ]
    return [
        {**prompt._asdict(), "answers": answers[place * sampling.answers : (place + 1) * sampling.answers]}
        for place, prompt in enumerate(prompts)
    ]


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
