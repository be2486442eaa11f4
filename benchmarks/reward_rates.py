"""`python -m benchmarks.reward_rates`: rates and epochs of reward models, by cross-validation on three real sets.

Each run fits the head on half of a set's training pairs, trains on them with one rate, and is measured on the other
half before the first step and after each epoch. So the schedule is that of the longest run. The head's fit alone is
the figure to beat. A result is appended to a file as soon as it is there, so a killed run continues.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import nn

from benchmarks.methods import markdown, number
from tasks.common.python_files import load_module
from tasks.common.record import Record
from tasks.common.yaml_files import read_yaml
from tasks.data.encoding.tokens import EncodedPair, encode, load_tokenizer
from tasks.data.records import Message
from tasks.data.splits import root_id, split_of
from tasks.learning.batches import evenly_spaced
from tasks.learning.held_out import pair_batches
from tasks.learning.maths.pairs import PairValues
from tasks.learning.models.forward import compute_device
from tasks.learning.models.loading import new_reward_model, set_up, with_adapters
from tasks.learning.reward_model.head_fit import HeadRows, head_rows, start_head
from tasks.learning.reward_model.loss import PairTerms, loss_of
from tasks.learning.reward_model.training import pair_scores, reward_training_loop
from tasks.learning.training.sharded_state import Copies
from tasks.learning.training.supervised import SupervisedTrainer
from tasks.settings.fingerprint import Fingerprint
from tasks.settings.params import PARAMS_FILE, Lora, Params, load_params

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / ".trueline" / "reward_rates.jsonl"
UNSAVED = Fingerprint({}, {})  # checkpoints are off
NAMED = {"truthfulqa": "smollm2-truthfulqa", "sentiment": "sentiment"}  # settings that say how a set's pairs are made
GSM8K = "gsm8k"
PAIRS = {"truthfulqa": 120, "sentiment": 120, GSM8K: 48}  # each of another prompt
LONGEST = 160  # tokens of a row
RATES = {"LoRA": (2e-4, 8e-4, 2e-3), "full": (1e-5, 3e-5, 1e-4)}
LORA = Lora(rank=16, alpha=32, targets="all-linear", quantize=None)
EPOCHS, FOLDS = 2, 2
TRAINING = {"head_init": "fit", "epochs": EPOCHS, "batch_size": 8, "warmup_ratio": 0.1}


class Job(NamedTuple):
    """What is trained."""

    data: str
    weights: str  # a key of RATES
    rate: float
    fold: int  # not learned from


class Result(Record):
    """What came of a job: figures of its held-out pairs after 0, 1, … epochs."""

    data: str
    weights: str
    rate: float
    fold: int
    pairs: int  # of the set
    losses: list[float]
    right: list[float]  # share of pairs whose chosen answer scores higher
    cpu: float  # seconds


class Pairs(NamedTuple):
    """Pairs of a set and what a head reads of them."""

    encoded: list[EncodedPair]
    rows: HeadRows

    def take(self, places: Sequence[int]) -> "Pairs":
        """Give some of them."""
        features = PairValues(*(each[list(places)] for each in self.rows.features))
        conversations = [self.rows.conversations[place] for place in places]
        return Pairs(
            [self.encoded[place] for place in places],
            HeadRows(features, self.rows.terms.take(places), conversations),
        )


class Measured:
    """Measures held-out pairs before the first step and after each epoch; a callback of the trainer."""

    def __init__(self, model: nn.Module, held_out: Pairs, params: Params) -> None:
        """Prepare to measure."""
        self._model, self._params = model, params
        tokens = params.runtime.max_tokens_per_micro_batch
        self._held_out = pair_batches(held_out.encoded, tokens, compute_device(model))
        self.losses: list[float] = []
        self.right: list[float] = []
        self.state: Mapping[str, Any] = {}  # there are no checkpoints
        self.copies: Copies = {}

    def restore(self, state: Mapping[str, Any], copies: Copies) -> None:
        """Take nothing back."""

    @torch.no_grad()
    def at_step(self, step: int, num_steps: int) -> None:
        """Measure if an epoch begins or ends here."""
        if step % (num_steps // EPOCHS):
            return
        found = [pair_scores(self._model, batch) for batch in self._held_out.batches]
        scores = PairValues(*(torch.cat(each) for each in zip(*found, strict=True)))
        self.losses.append(loss_of(scores, len(scores.margins), self._params.reward).item())
        self.right.append((scores.margins > 0).double().mean().item())

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log no steps."""


def main(
    model: Annotated[Path, typer.Option(help="folder of the base model")],
    data: Annotated[Path, typer.Option(help="folder with the folders truthfulqa, sentiment and gsm8k")],
    only: Annotated[list[str] | None, typer.Option(help="a set; may be given several times")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="LoRA or full")] = None,
    show: Annotated[bool, typer.Option("--show", help="run nothing, print what there is")] = False,
) -> None:
    """Run what has no result yet, and print all results."""
    done = read_results(RESULTS)
    for name in () if show else only or PAIRS:
        jobs = [
            Job(name, kind, rate, fold) for kind in weights or RATES for rate in RATES[kind] for fold in range(FOLDS)
        ]
        missing = [job for job in jobs if job not in done]
        pairs = read_pairs(name, model, data) if missing else None
        for job in missing:
            assert pairs is not None
            done[job] = run(job, pairs, model)
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[job].as_json()) + "\n")
    print(table(done.values()), ratios(done.values()), sep="\n\n")


def read_results(file: Path) -> dict[Job, Result]:
    """Read the results that are there, of as many pairs as today's."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    results = [Result.model_validate(json.loads(line)) for line in lines]
    return {
        Job(each.data, each.weights, each.rate, each.fold): each for each in results if each.pairs == PAIRS[each.data]
    }


def params_for(weights: str, rate: float) -> Params:
    """The shipped settings with those of a run, in force."""
    shipped = load_params(ROOT / PARAMS_FILE)
    sections = {
        "runtime": shipped.runtime.model_copy(update={"threads": 1, "precision": "bf16", "checkpoint_every": 0}),
        "reward": shipped.reward.model_copy(update={**TRAINING, "learning_rate": rate}),
        "lora": LORA if weights == "LoRA" else LORA.model_copy(update={"rank": 0}),
    }
    params = shipped.model_copy(update=sections)
    set_up(params)
    return params


def read_pairs(name: str, model: Path, data: Path) -> Pairs:
    """Read a set's pairs of the training split that are short enough, one a prompt, and what a head reads of them."""
    params, tokenizer = params_for("full", 0.0), load_tokenizer(model)
    found: dict[str, EncodedPair] = {}
    for prompt, *answers in read_rows(name, data):
        key = root_id(prompt)
        if key not in found and split_of(prompt, params.prepare.split) == "train":
            pair = EncodedPair(*(encode(tokenizer, prompt, answer) for answer in answers))
            found |= {key: pair} if pair.length <= LONGEST else {}
    keys = [list(found)[place] for place in evenly_spaced(len(found), PAIRS[name])]
    encoded = [found[key] for key in keys]
    terms = PairTerms(torch.ones(len(keys)), torch.zeros(len(keys)))
    tokens = params.runtime.max_tokens_per_micro_batch
    rows = head_rows(new_reward_model(model, params), encoded, keys, terms, tokens=tokens, title=f"{name}: features")
    return Pairs(encoded, rows)


def read_rows(name: str, data: Path) -> Iterator[tuple[list[Message], str, str]]:
    """Give prompt, chosen and rejected answer of a set's pairs, as its named setting has them if there is one."""
    if name == GSM8K:
        for line in (data / GSM8K / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield [{"role": "user", "content": row["prompt"]}], row["chosen"], row["rejected"]
        return
    setting: Any = read_yaml(ROOT / f"infra/settings/{NAMED[name]}.yaml")
    source = setting["prepare"]["preferences"]
    for row in load_module(ROOT / source["source"]).preferences(0, {**source["options"], "folder": str(data / name)}):
        yield row["prompt"], row["chosen"], row["rejected"]


def run(job: Job, pairs: Pairs, model: Path) -> Result:
    """Train on all pairs but those of the fold, and measure these."""
    params, began, places = params_for(job.weights, job.rate), time.process_time(), range(len(pairs.encoded))
    learned, held_out = (
        pairs.take([place for place in places if (place % FOLDS == job.fold) is held]) for held in (False, True)
    )
    started = new_reward_model(model, params)
    start_head(started, learned.rows, params.reward, params.seed, job.data)
    trained = with_adapters(started, params.lora)
    measured = Measured(trained, held_out, params)
    trainer = SupervisedTrainer(
        f"{job.data}, {job.weights} at {job.rate:g}",
        UNSAVED,
        trained,
        [2 * pair.length for pair in learned.encoded],
        params=params,
        settings=params.reward,
        run=measured,
        callback=measured,
    )
    reward_training_loop(trainer, trained, learned.encoded, params.reward)
    found = {"losses": measured.losses, "right": measured.right, "cpu": round(time.process_time() - began, 1)}
    return Result.model_validate({**job._asdict(), "pairs": len(places), **found})


def table(results: Iterable[Result]) -> str:
    """A row a set and rate: held-out loss and accuracy by epoch, means over the folds, in Markdown."""
    rows = [
        (*key[:2], f"{key[2]:g}", *(f"{loss:.3f}, {number(right)}" for loss, right in by_epoch(group)), cpu_of(group))
        for key, group in grouped(results).items()
    ]
    return markdown(("pairs", "weights", "rate", *(f"epoch {epoch}" for epoch in range(EPOCHS + 1)), "CPU s"), rows)


def ratios(results: Iterable[Result]) -> str:
    """A row a rate: held-out loss after each epoch divided by that of the fit alone, geometric mean over the sets."""
    by_rate: dict[tuple[str, float], list[list[float]]] = {}
    for (_, weights, rate), group in grouped(results).items():
        (first, _), *later = by_epoch(group)
        by_rate.setdefault((weights, rate), []).append([loss / first for loss, _ in later])
    rows = [
        (weights, f"{rate:g}", str(len(sets)), *(f"{geometric_mean(each):.3f}" for each in zip(*sets, strict=True)))
        for (weights, rate), sets in by_rate.items()
    ]
    return markdown(("weights", "rate", "sets", *(f"epoch {epoch}" for epoch in range(1, EPOCHS + 1))), rows)


def grouped(results: Iterable[Result]) -> dict[tuple[str, str, float], list[Result]]:
    """Put the folds of each rate on each set together; without rates of which a fold is missing."""
    groups: dict[tuple[str, str, float], list[Result]] = {}
    for each in results:
        groups.setdefault((each.data, each.weights, each.rate), []).append(each)
    return {key: group for key, group in sorted(groups.items()) if len(group) == FOLDS}


def by_epoch(group: Sequence[Result]) -> list[tuple[float, float]]:
    """Loss and share right after 0, 1, … epochs, means over the folds."""
    losses, right = (
        [fmean(each) for each in zip(*values, strict=True)]
        for values in ([each.losses for each in group], [each.right for each in group])
    )
    return list(zip(losses, right, strict=True))


def cpu_of(group: Sequence[Result]) -> str:
    """CPU seconds of all folds."""
    return f"{sum(each.cpu for each in group):.0f}"


if __name__ == "__main__":
    typer.run(main)
