"""Reward models: learned from pairs, measured on others, and put on a standard scale."""

import logging
import statistics
from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from tasks.common.files import CURVES, METRICS, MODELS, VALIDATED, replacing, write_csv, write_json
from tasks.data.encoding.encoded import EncodedRows, encoded_demonstrations, encoded_preferences
from tasks.data.encoding.tokens import EncodedPair, load_tokenizer
from tasks.data.records import Preference, Record, Split, read_records
from tasks.data.splits import root_id
from tasks.data.tool_calls import answer_as_text
from tasks.learning import processes
from tasks.learning.batches import (
    Batch,
    collate_pairs,
    evenly_spaced,
    require_rows,
    steps_in,
)
from tasks.learning.held_out import HeldOut, pair_batches, row_batches
from tasks.learning.maths.pairs import PairValues
from tasks.learning.models.forward import compute_device
from tasks.learning.models.loading import (
    context_length,
    join_members,
    new_reward_model,
    set_up,
    with_adapters,
)
from tasks.learning.models.outputs import completion_scores
from tasks.learning.reward_model.baselines import Texts, baselines
from tasks.learning.reward_model.calibration import ScoredPair, accuracy_by, reward_metrics
from tasks.learning.reward_model.ensemble import (
    Member,
    ensemble_figures,
    ensemble_pairs,
    joined_curve,
    standardise,
    training_figures,
)
from tasks.learning.reward_model.head_fit import HeadRows, head_rows, start_head
from tasks.learning.reward_model.loss import PairTerms, loss_of, pair_terms
from tasks.learning.seeds import seed_for
from tasks.learning.sharding import full_model, measurable
from tasks.learning.training.checkpoints import delete_checkpoints
from tasks.learning.training.curves import NO_STEPS, CountedOn, Log, Run, publish
from tasks.learning.training.early_stopping import EarlyStopping
from tasks.learning.training.supervised import SupervisedTrainer
from tasks.settings.fingerprint import Fingerprint, content_fingerprint
from tasks.settings.params import Params, Reward

SFT = MODELS / "sft"
DEMONSTRATIONS, PREFERENCES = VALIDATED / "demonstrations.jsonl", VALIDATED / "preferences.jsonl"
INPUTS = [PREFERENCES, DEMONSTRATIONS]
# What lies in the place of a model that was not wanted, and says so.
NOTE, NOTHING_TRAINED = "NOTE.txt", "No reward model was trained"
EVALUATIONS_PER_EPOCH = 4
MOST_EVALUATED = 512  # pairs, in an evaluation of early stopping
logger = logging.getLogger(__name__)


class PairSource(NamedTuple):
    """Where a pair comes from: a model may be good on the pairs of one source or annotator and not on others."""

    conversation: str  # whose pairs are not independent
    source: str
    choices: list[tuple[str, bool]]  # who chose, and whether it was the answer that the record has as chosen


class TrainingData(NamedTuple):
    """What every member of an ensemble is trained on and measured with."""

    pairs: EncodedRows[EncodedPair]
    terms: PairTerms  # of the pairs, on the CPU
    fitted_on: HeadRows | None  # None: heads start at random
    stopped_by: Callable[[], Sequence[EncodedPair]]  # gives the pairs of early stopping
    watched: HeldOut
    test: EncodedRows[EncodedPair]
    conversations: list[str]  # of the test pairs
    demonstrated: HeldOut  # answers that SFT learned


def train_reward_model(
    stage: str,
    params: Params,
    settings: Reward,
    *,
    learned_from: Split,
    watched: Split,
    stopped_by: Split,
    fingerprint: Fingerprint | None,
    tracked: AbstractContextManager[Run],
) -> None:
    """Train the SFT model with a scalar head on the pairs of a split, and write what the stage writes.

    Args:
        stage: names the outputs.
        params: seed, runtime and adapters.
        settings: of the training.
        learned_from: the split that is trained on.
        watched: the split whose loss is measured before and after; the other figures are of the test split.
        stopped_by: the split on which early stopping measures the loss, if the settings ask for it.
        fingerprint: what the stage's result follows from; None where DVC does not know it.
        tracked: gives the run, and ends it; entered when the input has been checked.

    Raises:
        InputError: a split is empty, a row does not fit the model, or training no longer gives numbers.
    """
    device, tokens = set_up(params), params.runtime.max_tokens_per_micro_batch
    tokenizer = load_tokenizer(SFT)
    started = new_reward_model(SFT, params, settings.pooling)
    context = context_length(started)

    def pairs_of(split: Split) -> EncodedRows[EncodedPair]:
        return require_rows(encoded_preferences(VALIDATED, split, tokenizer, context), PREFERENCES, split)

    pairs, test = pairs_of(learned_from), pairs_of("test")
    held_out, sources = pair_batches(pairs_of(watched), tokens, device), pair_sources("test")
    demonstrations = encoded_demonstrations(VALIDATED, "validation", tokenizer, context)
    answers = require_rows(demonstrations, DEMONSTRATIONS, "validation")
    fingerprint = fingerprint or content_fingerprint(stage, params, [*INPUTS, SFT])
    with tracked as run:
        terms = pair_terms(learned_from)
        fitted_on = None
        if settings.head_init == "fit":
            conversations = [each.conversation for each in pair_sources(learned_from)]
            title = f"{stage}: features"
            fitted_on = head_rows(started, pairs, conversations, terms, tokens=tokens, title=title)
        data = TrainingData(
            pairs=pairs,
            terms=terms,
            fitted_on=fitted_on,
            stopped_by=lambda: pairs_of(stopped_by),
            watched=held_out,
            test=test,
            conversations=[each.conversation for each in sources],
            demonstrated=row_batches(answers, tokens, device),
        )
        members = train_members(stage, params, settings, started, data, fingerprint=fingerprint, log=run)
        scored = ensemble_pairs(members, settings.ensemble_penalty)
        normalisation = standardise(members, settings.ensemble_penalty)
        metrics = {
            "pairs": len(pairs),
            "tokens": int(pairs.counts[:, 1:].sum()),
            **training_figures(members, watched),
            **reward_metrics(scored),
            **accuracies(scored, sources),
            **ensemble_figures(members, normalisation["gain"], watched),
            "baselines": baselines(scored, answer_texts("test"), answer_texts(learned_from), params.seed),
            "normalisation": normalisation,
        }
        models = [member.model for member in members]
        join_members(models, settings.ensemble_penalty)
        curve = joined_curve(members)
        publish(stage, models[0], tokenizer, metrics=metrics, curve=curve, run=run, others=models[1:])
    if processes.is_main():
        for number in range(1, settings.ensemble + 1):
            delete_checkpoints(member_name(stage, number))


def train_members(
    stage: str,
    params: Params,
    settings: Reward,
    started: PreTrainedModel,
    data: TrainingData,
    *,
    fingerprint: Fingerprint,
    log: Log,
) -> list[Member]:
    """Train one model after the other, the first from `started`.

    Raises:
        InputError: a head's penalty cannot be chosen, or training no longer gives numbers.
    """
    members: list[Member] = []
    for number in range(1, settings.ensemble + 1):
        seeded = of_member(params, number)
        model = new_reward_model(SFT, seeded, settings.pooling) if members else started
        counted_on = CountedOn(log, sum(len(member.curve.rows) for member in members))
        name = member_name(stage, number)
        members.append(train_member(name, seeded, settings, model, data, fingerprint=fingerprint, log=counted_on))
    return members


def of_member(params: Params, number: int) -> Params:
    """Settings of a member, by its number from 1; beyond the first with a seed of its own, by which torch goes too."""
    if number == 1:
        return params
    seeded = params.model_copy(update={"seed": seed_for(params.seed, "ensemble", number) % 2**31})
    set_up(seeded)
    return seeded


def member_name(stage: str, number: int) -> str:
    """Under which a member has its checkpoints and its progress: a kill is resumed in the member that it hit."""
    return stage if number == 1 else f"{stage}-{number}"


def train_member(
    name: str,
    params: Params,
    settings: Reward,
    started: PreTrainedModel,
    data: TrainingData,
    *,
    fingerprint: Fingerprint,
    log: Log,
) -> Member:
    """Train one reward model and measure it, with raw scores.

    Raises:
        InputError: the head's penalty cannot be chosen, or training no longer gives numbers.
    """
    tokens, pairs, device = params.runtime.max_tokens_per_micro_batch, data.pairs, compute_device(started)
    head: dict[str, Any] = {}
    if data.fitted_on is not None:
        rows = data.fitted_on if settings.ensemble == 1 else data.fitted_on.resampled(params.seed)
        head = start_head(started, rows, settings, params.seed, name)
    model = with_adapters(started, params.lora)
    stopping = early_stopping(model, pairs, data.stopped_by, settings, tokens)
    trainer = SupervisedTrainer(
        name,
        fingerprint,
        model,
        (2 * pairs.lengths).tolist(),
        params=params,
        settings=settings,
        run=log,
        head_learning_rate=settings.head_learning_rate,
        callback=stopping,
    )
    before = held_out_loss(model, data.watched, settings, f"{name}: held-out pairs before")
    reward_training_loop(trainer, model, pairs, settings, terms=data.terms.to(device))
    stopped = {"early_stopping": stopping.restore_best()} if stopping else {}
    trained = measurable(model)
    after = before  # of a fitted head alone, which no step has changed
    if trainer.curve.rows:
        after = held_out_loss(trained, data.watched, settings, f"{name}: held-out pairs after")
    raw = scored_pairs(trained, data.test, tokens, f"{name}: test pairs")  # raw scores: their margins are the log-odds
    scored = [pair._replace(prompt=each) for pair, each in zip(raw, data.conversations, strict=True)]
    trainer.check({"held-out loss": after, "held-out margin": statistics.fmean(pair.margin for pair in scored)})
    demonstrated = scores_of(trained, data.demonstrated, f"{name}: demonstrated answers")
    figures = {**trainer.summary(), **head, **stopped}
    full = full_model(trained)
    if settings.ensemble > 1 and not processes.uses_fsdp():
        full.cpu()  # the next one needs the room
    return Member(full, trainer.curve, figures, {"before": before, "after": after}, scored, demonstrated)


def early_stopping(
    model: nn.Module, learned: Sized, asked: Callable[[], Sequence[EncodedPair]], settings: Reward, tokens: int
) -> EarlyStopping | None:
    """Give what stops training on the loss of held-out pairs `asked`, at most `MOST_EVALUATED`, if it is asked for."""
    if settings.early_stopping is None:
        return None
    held_out = asked()
    pairs = [held_out[place] for place in evenly_spaced(len(held_out), MOST_EVALUATED)]
    batches = pair_batches(pairs, tokens, compute_device(model))
    every = max(1, steps_in(len(learned), settings.batch_size, 1) // EVALUATIONS_PER_EPOCH)
    return EarlyStopping(
        model,
        lambda: held_out_loss(model, batches, settings, "early stopping"),
        every=every,
        patience=settings.early_stopping,
    )


def leave_untrained(stage: str, tracked: AbstractContextManager[Run]) -> None:
    """Write what a stage leaves if no reward model is needed: a note instead of the model, no metrics, no steps."""
    note = f"{NOTHING_TRAINED}: rewards.training in params.yaml names functions only."
    logger.warning("%s: %s", stage, note)
    with tracked as run:
        if not processes.is_main():
            return
        with replacing(MODELS / stage) as draft:
            draft.mkdir()
            (draft / NOTE).write_text(note + "\n", encoding="utf-8")
        write_csv(CURVES / f"{stage}.csv", NO_STEPS, [])
        metrics = {"trained": False}
        write_json(METRICS / f"{stage}.json", metrics)
        run.summary(metrics)


def reward_training_loop(
    trainer: SupervisedTrainer,
    model: nn.Module,
    pairs: Sequence[EncodedPair],
    settings: Reward,
    *,
    terms: PairTerms | None = None,
) -> None:
    """Minimise the Bradley-Terry loss, averaged over the pairs of a step by their weights; `terms` are of all pairs."""
    for step in trainer.steps():
        pair_count = len(step.items)
        total_weight = pair_count if terms is None else float(terms.take(step.items).weights.sum())
        with step.attempt():
            for micro_batch in step.micro_batches:
                batch = collate_pairs([pairs[index] for index in micro_batch.items], compute_device(model))
                of_batch = None if terms is None else terms.take(micro_batch.items)  # before the pass, as in dpo
                scores = pair_scores(model, batch)
                losses = {
                    "loss": loss_of(scores, total_weight, settings, of_batch),
                    "accuracy": (scores.margins > 0).sum() / pair_count,
                    "margin": scores.margins.sum() / pair_count,
                }
                step.backward(micro_batch, losses)


def pair_scores(model: nn.Module, batch: Batch) -> PairValues:
    """Score both answers of every pair of a batch, in fp32."""
    return PairValues(*completion_scores(model, batch).chunk(2))


@torch.no_grad()
def held_out_loss(model: nn.Module, held_out: HeldOut, settings: Reward, title: str) -> float:
    """Mean loss over some pairs, in fp32; `title` names the progress bar."""
    sums = {"loss": 0.0, "pairs": 0}
    for batch, group in held_out.tracked(title):
        scores = pair_scores(model, batch)
        if group.weight:
            sums["loss"] += loss_of(scores, 1, settings).item()
            sums["pairs"] += len(scores.chosen)
    total, pair_count = processes.summed(sums).values()
    return total / pair_count


@torch.no_grad()
def scores_of(model: nn.Module, held_out: HeldOut, title: str) -> list[float]:
    """Score answers in fp32, of all processes, in the order of their batches; `title` names the progress bar."""
    found: list[float] = []
    for batch, group in held_out.tracked(title):
        scores = completion_scores(model, batch).tolist()
        found += scores if group.weight else []
    return processes.gathered(found)


@torch.no_grad()
def scored_pairs(model: nn.Module, pairs: EncodedRows[EncodedPair], tokens: int, title: str) -> list[ScoredPair]:
    """Score every pair in fp32, in micro-batches of at most `tokens` tokens; the result has the order of the pairs.

    `title` names the progress bar.
    """
    held_out = pair_batches(pairs, tokens, compute_device(model))
    found: list[tuple[int, ScoredPair]] = []
    for batch, (places, weight) in held_out.tracked(title):
        lengths = batch.completion_mask.sum(dim=1).chunk(2)
        columns = [values.tolist() for values in (*pair_scores(model, batch), *lengths)]
        found += zip(places, map(ScoredPair, *columns), strict=True) if weight else ()
    return [pair for _, pair in sorted(processes.gathered(found))]


def pair_sources(split: Split) -> list[PairSource]:
    """Say of every pair of a split where it comes from and who chose which answer, in the order of the pairs."""
    return [_pair_source(record) for record in read_records(VALIDATED, "preferences", split)]


def answer_texts(split: Split) -> list[Texts]:
    """Both answers of every pair of a split, in the order of the pairs."""
    records = read_records(VALIDATED, "preferences", split)
    return [
        Texts(answer_as_text(record.chosen), answer_as_text(record.rejected))
        for record in records
        if isinstance(record, Preference)
    ]


def _pair_source(record: Record) -> PairSource:
    assert isinstance(record, Preference)
    alone = [] if record.annotator is None else [(record.annotator, True)]
    voted = [
        (vote["annotator"], vote["choice"] == "chosen")
        for vote in record.votes or []
        if vote["counted"] and vote["choice"] != "tie"
    ]
    return PairSource(root_id(record.prompt), record.source, alone + voted)


def accuracies(scored: Sequence[ScoredPair], sources: Sequence[PairSource]) -> dict[str, dict[str, Any]]:
    """Accuracy by source, and by annotator on that annotator's own votes, whatever most others chose."""
    by_source: dict[str, list[ScoredPair]] = {}
    by_annotator: dict[str, list[ScoredPair]] = {}
    for pair, source in zip(scored, sources, strict=True):
        by_source.setdefault(source.source, []).append(pair)
        for annotator, agrees in source.choices:
            by_annotator.setdefault(annotator, []).append(pair if agrees else pair.swapped)
    return {"accuracy_by_source": accuracy_by(by_source), "accuracy_by_annotator": accuracy_by(by_annotator)}
