"""`python -m benchmarks.methods`: what every method, loss and combination of rewards makes of the built-in example.

Each seed has a folder with a copy of the checkout, where DVC runs what a variant's settings have made stale: models
that variants share are trained once. A result is appended to a file as soon as it is there, so a killed run continues.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from benchmarks.variants import ALONE, TOGETHER, VARIANTS, Settings
from tasks.common.record import Number, Record, read_record
from tasks.evaluation.compare import Interval, Resampling, bootstrap_interval
from tasks.evaluation.schema import EVALUATION, RESPONSES, Evaluation, IntervalFigure, MeanFigure, read_responses
from tasks.settings.params import PARAMS_FILE

ROOT = Path(__file__).parents[1]
SEEDS = (7, 11, 3)
RULE = "order_rule"  # the name of the ground-truth reward in params.yaml
SHARED_STAGES = ("reward", "held_out_reward")  # and what they need: the same for all variants of a seed
# What makes the evaluation cheaper and leaves answers to the test prompts as they are.
COMMON: Settings = {"evaluate.best_of": 1, **{f"{stage}.evaluation_points": 0 for stage in ("dpo", "kto", "ppo")}}


class Result(Record):
    """What came of a variant on a seed."""

    variant: str
    seed: int
    settings: dict[str, Any]
    sft: float  # ground truth
    aligned: float
    difference: IntervalFigure  # aligned minus SFT
    kl: MeanFigure
    decision: str  # the gate's
    cpu: Number  # seconds of training, evaluation and gate; None: not measured
    wall: Number
    scores: list[float]  # ground truth of each test prompt's answer


class Advantage(NamedTuple):
    """Ground truth of a variant minus that of another, on the same prompts."""

    variant: str
    over: str
    seed: int
    difference: Interval


def main(
    only: Annotated[list[str] | None, typer.Option(help="a variant; may be given several times")] = None,
    seeds: Annotated[str, typer.Option(help="separated by commas")] = ",".join(map(str, SEEDS)),
    folder: Annotated[Path, typer.Option(help="of copies and results")] = ROOT / ".trueline" / "methods",
    show: Annotated[bool, typer.Option("--show", help="run nothing, print what there is")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Train and evaluate what has no result yet, and print all results."""
    if unknown := set(only or ()) - set(VARIANTS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(VARIANTS)}")
    folder = folder.resolve()
    file, numbers, names = folder / "results.jsonl", [int(seed) for seed in seeds.split(",")], only or list(VARIANTS)
    done = read_results(file)
    for seed in () if show else numbers:
        if missing := [name for name in names if (name, seed) not in done]:
            for result in run_seed(folder / f"seed-{seed}", seed, missing):
                done[result.variant, seed] = result
                with file.open("a", encoding="utf-8") as results:
                    results.write(json.dumps(result.as_json()) + "\n")
                print(table([result]).splitlines()[-1], file=sys.stderr, flush=True)
    found = [done[name, seed] for name in names for seed in numbers if (name, seed) in done]
    gained = list(advantages(found))
    if as_json:
        rows = [result.as_json() for result in found]
        print(json.dumps({"results": rows, "advantages": [each._asdict() for each in gained]}, indent=2))
    else:
        print(table(found), summary(found), advantage_table(gained), sep="\n\n")


def read_results(file: Path) -> dict[tuple[str, int], Result]:
    """Read the results that are there, by variant and seed; those of other settings than today's do not count."""
    if not file.exists():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    results = [Result.model_validate(json.loads(line)) for line in lines]
    return {
        (each.variant, each.seed): each
        for each in results
        if each.variant in VARIANTS and each.settings == plain(VARIANTS[each.variant])
    }


def plain(settings: Settings) -> dict[str, Any]:
    """Give settings as JSON has them."""
    content: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return content


def run_seed(checkout: Path, seed: int, names: Sequence[str]) -> Iterator[Result]:
    """Run variants on a seed, one after the other."""
    copy_checkout(checkout)
    shipped = (checkout / PARAMS_FILE).read_bytes()
    common = {"seed": seed, "runtime.threads": 1, **COMMON}
    configure(checkout, shipped, common)
    call(checkout, "dvc", "repro", *SHARED_STAGES)
    for name in names:
        configure(checkout, shipped, {**common, **VARIANTS[name]})
        began, used = time.monotonic(), cpu_of_children()
        call(checkout, "dvc", "repro", "gate")
        yield read_result(checkout, name, seed, cpu_of_children() - used, time.monotonic() - began)


def copy_checkout(folder: Path) -> None:
    """Copy what git knows of the checkout, uncommitted changes included, over what is in the folder."""
    known = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, known.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)  # DVC needs one


def configure(checkout: Path, shipped: bytes, settings: Settings) -> None:
    """Write the shipped params.yaml with some settings changed."""
    (checkout / PARAMS_FILE).write_bytes(shipped)
    call(checkout, "trueline", "configure", *(f"{name}={json.dumps(value)}" for name, value in settings.items()))


def call(checkout: Path, command: str, *arguments: str) -> None:
    """Run a command of the environment in a checkout, with the code that is there.

    Raises:
        SystemExit: it failed.
    """
    binaries = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    with (checkout / "log").open("a", encoding="utf-8") as log:
        line = [str(binaries / command), *arguments]
        code = subprocess.run(line, cwd=checkout, env=environment, stdout=log, stderr=log, check=False).returncode
    if code:
        sys.exit(f"{command} {' '.join(arguments)} failed: {checkout / 'log'} says why")


def cpu_of_children() -> float:
    """Seconds of the processor that all ended child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_result(checkout: Path, name: str, seed: int, cpu: float, wall: float) -> Result:
    """Read what the stages left in a checkout."""
    evaluation = read_record(checkout / EVALUATION, Evaluation)
    ground_truth = evaluation.ground_truth[RULE]
    assert ground_truth.sft is not None
    assert ground_truth.candidate is not None
    scores = [row.candidate.ground_truth[RULE] for row in read_responses(checkout / RESPONSES)]
    return Result(
        variant=name,
        seed=seed,
        settings=plain(VARIANTS[name]),
        sft=ground_truth.sft,
        aligned=ground_truth.candidate,
        difference=evaluation.difference.vs_sft.ground_truth[RULE],
        kl=evaluation.kl,
        decision=json.loads((checkout / "metrics" / "gate.json").read_text(encoding="utf-8"))["decision"],
        cpu=round(cpu, 1),
        wall=round(wall, 1),
        scores=[score for score in scores if score is not None],
    )


def advantages(results: Sequence[Result]) -> Iterator[Advantage]:
    """Compare, on each seed, rewards together with each alone."""
    by_place = {(each.variant, each.seed): each for each in results}
    for (variant, seed), ours in by_place.items():
        for over in ALONE if variant in TOGETHER else ():
            if theirs := by_place.get((over, seed)):
                differences = [one - other for one, other in zip(ours.scores, theirs.scores, strict=True)]
                interval = bootstrap_interval(differences, Resampling(resamples=2000, confidence=0.95, seed=seed))
                yield Advantage(variant, over, seed, interval)


def table(results: Sequence[Result]) -> str:
    """A row a variant and seed, with everything there is to compare by, in Markdown."""
    columns = ("variant", "seed", "SFT", "aligned", "difference, 95 % interval", "KL", "gate", "CPU s", "wall s")
    rows = [
        (
            each.variant,
            str(each.seed),
            number(each.sft),
            number(each.aligned),
            with_interval(each.difference),
            f"{each.kl.mean:.2f}",
            each.decision,
            *("" if seconds is None else f"{seconds:.0f}" for seconds in (each.cpu, each.wall)),
        )
        for each in results
    ]
    return markdown(columns, rows)


def summary(results: Sequence[Result]) -> str:
    """A row a variant, a column a seed: the difference from SFT."""
    cells = {(each.variant, each.seed): with_interval(each.difference) for each in results}
    return by_seed(("variant",), {(variant,): variant for variant, _ in cells}, cells)


def advantage_table(gained: Sequence[Advantage]) -> str:
    """A row a pair of variants, a column a seed."""
    cells = {((each.variant, each.over), each.seed): with_interval(each.difference) for each in gained}
    return by_seed(("variant", "over"), {pair: pair for pair, _ in cells}, cells)


def by_seed(columns: Sequence[str], names: Mapping[tuple[str, ...], object], cells: Mapping[Any, str]) -> str:
    """Lay out cells by name and seed."""
    seeds = sorted({seed for _, seed in cells})
    rows = [(*name, *(cells.get((key, seed), "") for seed in seeds)) for name, key in names.items()]
    return markdown((*columns, *(f"seed {seed}" for seed in seeds)), rows)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))


def with_interval(figure: IntervalFigure | Interval) -> str:
    """A difference and its interval."""
    numbers = (figure.value, figure.low, figure.high)
    value, low, high = (number(each) for each in numbers if each is not None)
    return f"{value} [{low}, {high}]" if value.startswith("-") else f"+{value} [{low}, {high}]"


def number(value: float) -> str:
    """Two decimals, without the zero before the point."""
    return f"{value:.2f}".replace("0.", ".", 1)


if __name__ == "__main__":
    typer.run(main)
