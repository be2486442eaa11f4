"""What a run would do, before anything is trained: rows, tokens, steps, time, and what the gate can tell.

Only the stages prepare and base run, which are cheap. Times are rough: speed.py measures what they rest on.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flows.inspection.memory import HERE, Devices, memory_plan, read_shape
from flows.inspection.speed import Speed, measure_speed
from flows.stages.reproduce import reproduce
from tasks.common.files import MODELS
from tasks.data.checks.look import look
from tasks.data.checks.schema import SPLITS
from tasks.data.encoding.tokens import load_tokenizer
from tasks.data.records import TYPES, Kind
from tasks.evaluation.power import prompts_needed
from tasks.learning.batches import steps_in
from tasks.learning.memory.stages import RowLengths
from tasks.learning.reward_model.calibration import wilson_interval
from tasks.methods import METHODS
from tasks.registry.dvc_outputs.graph import graph_status
from tasks.rewards.sources import check_verifiers
from tasks.settings.params import Params
from tasks.validate import longest_rows, within_length

SHARES = (0.9, 0.95, 0.99)
MANY_LOST = 0.1  # of the rows of a kind, to its length limit
EVEN = 0.5  # win rate of two models that are alike
HARDLY_REACHED = 0.9  # a win rate or accuracy above it is not to be expected
ANSWERS_A_PAIR = 2
FORWARD = 1 / 3  # of the time of a forward and backward pass
COMPARED = 3  # models that evaluate samples from: candidate, SFT and opponent


class Lengths(NamedTuple):
    """The rows of one kind: tokens of the longest answer with its prompt, and splits."""

    tokens: npt.NDArray[np.float64]  # (N,) as they are trained on
    whole: npt.NDArray[np.float64]  # (N,) before long rows are cut
    splits: npt.NDArray[np.int8]  # (N,) places in SPLITS
    limit: int

    def kept(self, split: str) -> npt.NDArray[np.float64]:
        """Tokens of the rows of a split that the length limit keeps."""
        kept: npt.NDArray[np.float64] = self.tokens[(self.splits == SPLITS.index(split)) & (self.tokens <= self.limit)]
        return kept


class Work(NamedTuple):
    """What a stage computes."""

    stage: str
    rows: int
    steps: int  # of the optimiser
    tokens: int  # in forward and backward passes
    passes: float  # of all models over these tokens, in forward and backward passes
    sampled: int  # tokens, at most


def make_plan(
    params: Params, devices: Devices = HERE, measure: Callable[[Params, int, int], Speed] = measure_speed
) -> dict[str, Any]:
    """Run prepare and base where they are stale, and say what the other stages would do with their outputs.

    Memory is that of `devices`.

    Raises:
        InputError: a source or a setting is wrong, or the base model is not sound.
        StageError: prepare or base failed for another reason.
    """
    check_verifiers(params.rewards)
    stale = graph_status().stale
    for stage in ("prepare", "base"):
        if stage in stale:
            reproduce(stage)
    return plan_of(params, measure, devices)


def plan_of(params: Params, measure: Callable[[Params, int, int], Speed], devices: Devices = HERE) -> dict[str, Any]:
    """Plan from data/prepare and models/base, with a function that measures speed at a row's and a prompt's length."""
    lengths = _lengths(params)
    works = list(_works(params, lengths))
    typical = lengths["demonstrations"].kept("train")
    asked = lengths["prompts"].kept("train")
    row, prompt = (max(2, round(_mean(found))) for found in (typical, asked))
    speed = measure(params, row, prompt)
    gate = gate_power(params, len(lengths["prompts"].kept("test")), len(lengths["preferences"].kept("test")))
    return {
        "rows": {kind: _rows(found) for kind, found in lengths.items()},
        "stages": [_timed(work, speed) for work in works],
        "measured": speed._asdict(),
        "memory": memory_plan(params, read_shape(MODELS / "base"), devices, RowLengths(row, min(prompt, row - 1))),
        "gate": gate,
        "warnings": [*length_warnings(params, lengths), *gate_warnings(gate)],
    }


def _lengths(params: Params) -> dict[Kind, Lengths]:
    tokenizer = load_tokenizer(MODELS / "base")
    settings = params.validate_
    limits = longest_rows(settings, MODELS / "base")
    with within_length(settings.model_copy(update={"truncate": None}), limits, tokenizer) as prepared:
        whole = {kind: look(kind, lines, tokenizer) for kind, lines in prepared.items()}
    trained = whole
    if settings.truncate:
        with within_length(settings, limits, tokenizer) as cut:
            trained = {kind: look(kind, lines, tokenizer) for kind, lines in cut.items()}
    found = {}
    for kind in TYPES:
        tokens, as_trained = (looked[kind].figures["tokens"] for looked in (whole, trained))
        is_sound = whole[kind].is_sound & ~np.isnan(tokens)
        found[kind] = Lengths(as_trained[is_sound], tokens[is_sound], whole[kind].splits[is_sound], limits[kind])
    return found


def length_warnings(params: Params, lengths: Mapping[Kind, Lengths]) -> Iterator[str]:
    """Name the kinds of which the length limit takes many rows out."""
    for kind, found in lengths.items():
        lost = int((found.tokens > found.limit).sum())
        if lost > MANY_LOST * len(found.tokens):
            cure = "" if params.validate_.truncate else ", or cut them (validate.truncate)"
            yield (
                f"{lost} of {len(found.tokens)} {kind} are longer than {found.limit} tokens and go to quarantine: "
                f"raise validate.max_tokens{cure}"
            )


def _rows(found: Lengths) -> dict[str, Any]:
    ordered = np.sort(found.whole)
    return {
        "limit": found.limit,
        "truncated": int(((found.whole > found.limit) & (found.tokens <= found.limit)).sum()),
        "splits": {
            split: {"rows": int((found.splits == place).sum()), "kept": len(found.kept(split))}
            for place, split in enumerate(SPLITS)
        },
        "limit_that_keeps": {
            f"{share:g}": int(ordered[math.ceil(share * len(ordered)) - 1]) if len(ordered) else None
            for share in SHARES
        },
    }


def _works(params: Params, lengths: Mapping[Kind, Lengths]) -> list[Work]:
    pairs = lengths["preferences"]
    method = METHODS[params.align.method].stage
    works = [_supervised(params, "sft", lengths["demonstrations"].kept("train"), 1, 1)]
    if params.rewards.use_model:
        for stage, split in (("reward", "train"), ("held_out_reward", "validation")):
            work = _supervised(params, stage, pairs.kept(split), ANSWERS_A_PAIR, 1)
            models = getattr(params, stage).ensemble
            works.append(work._replace(steps=work.steps * models, tokens=work.tokens * models))
    if method == "ppo":
        works.append(_ppo(params, lengths["prompts"]))
    elif method == "kto":  # policy, reference, and the mismatched answers of both
        works.append(_supervised(params, method, lengths["ratings"].kept("train"), 1, 1 + 3 * FORWARD))
    else:
        learned = np.concatenate([pairs.kept("train"), lengths["ai_preferences"].kept("train")])
        works.append(_supervised(params, method, learned, ANSWERS_A_PAIR, 1 + FORWARD))
    prompts = _test_prompts(params, len(lengths["prompts"].kept("test")))
    return [*works, Work("evaluate", prompts, 0, 0, 0, COMPARED * prompts * params.evaluate.max_new_tokens)]


def _supervised(params: Params, stage: str, rows: npt.NDArray[np.float64], answers: int, passes_a_token: float) -> Work:
    settings = getattr(params, stage)
    tokens = int(rows.sum()) * answers * settings.epochs
    steps = steps_in(len(rows), settings.batch_size, settings.epochs)
    return Work(stage, len(rows), steps, tokens, passes_a_token, 0)


def _ppo(params: Params, prompts: Lengths) -> Work:
    settings = params.ppo
    answers = settings.rollouts * settings.iterations
    sampled = answers * settings.max_new_tokens
    learns = 2 if settings.estimator == "gae" and settings.critic == "separate" else 1
    # Beside learning, policy, reference and rewards read every answer once.
    passes = learns + 3 * FORWARD / settings.epochs
    tokens = (sampled + round(answers * _mean(prompts.kept("train")))) * settings.epochs
    steps = settings.iterations * settings.epochs * settings.num_minibatches
    return Work("ppo", answers, steps, tokens, passes, sampled)


def _timed(work: Work, speed: Speed) -> dict[str, Any]:
    seconds = work.tokens * work.passes / speed.trained_a_second + work.sampled / speed.sampled_a_second
    found = work._asdict()
    del found["passes"]
    return {**found, "seconds": round(seconds, 1)}


def gate_power(params: Params, test_prompts: int, pairs: int) -> dict[str, Any]:
    """Say what so many test prompts and held-out pairs can show; None where nothing would do.

    Win rates and accuracies are those whose Wilson interval reaches the threshold. `found` is the true win rate that
    such a test finds four times out of five. The gate resamples its prompts, which differs little.
    """
    confidence, least = params.evaluate.confidence, params.gate.min_reward_accuracy
    prompts = _test_prompts(params, test_prompts)
    return {
        "prompts": prompts,
        "confidence": confidence,
        "win_rate": _smallest(prompts, lambda wins: wilson_interval(wins, prompts, confidence)[0] > EVEN),
        "found": _found(prompts, confidence),
        "pairs": pairs if params.rewards.use_model else None,  # None: no reward model is trained
        "min_reward_accuracy": least,
        "accuracy": _smallest(pairs, lambda right: wilson_interval(right, pairs)[0] >= least),
    }


def _smallest(count: int, suffices: Callable[[int], bool]) -> float | None:
    return next((number / count for number in range(count + 1) if count and suffices(number)), None)


def _found(prompts: int, confidence: float) -> float | None:
    """The smallest true win rate that is found, with the largest deviation that a win or loss may have."""
    for thousandths in range(501, 1001):
        needed = prompts_needed(thousandths / 1000 - EVEN, 0.5, confidence)
        if needed is not None and needed <= prompts:
            return thousandths / 1000
    return None


def gate_warnings(gate: Mapping[str, Any]) -> list[str]:
    """Name what the gate cannot tell with this split."""
    found = []
    if gate["win_rate"] is None or gate["win_rate"] > HARDLY_REACHED:
        found.append(
            f"{gate['prompts']} test prompts can hardly show that a model is better: only a win rate above "
            f"{HARDLY_REACHED:g} would; give more prompts, or raise prepare.split.test or evaluate.prompts"
        )
    if gate["pairs"] is not None and (gate["accuracy"] is None or gate["accuracy"] > HARDLY_REACHED):
        found.append(
            f"{gate['pairs']} held-out pairs can hardly show that a reward model reaches gate.min_reward_accuracy: "
            f"only an accuracy above {HARDLY_REACHED:g} would; give more pairs, or raise prepare.split.test"
        )
    return found


def _test_prompts(params: Params, available: int) -> int:
    return min(available, params.evaluate.prompts or available)


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0
