"""`python -m benchmarks.data`: what a growing number of pairs costs, from raw rows to the batches of training.

Every stage is a process of its own, in a folder of its own; its libraries count.
"""

import itertools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from tasks.common.files import MODELS, VALIDATED, write_jsonl
from tasks.settings.params import NO_ROWS, PARAMS_FILE

ROOT = Path(__file__).parents[1]
SEED, LONGEST = 7, 1024
BATCH_SIZE, TOKENS = 32, 8192  # pairs of a step, tokens of a pass
STAGES = {"prepare": "tasks.prepare", "validate": "tasks.validate", "pack": "benchmarks.data"}


class Cost(NamedTuple):
    """What a process took."""

    cpu: float  # seconds
    wall: float  # seconds
    memory: float  # MiB at most, pages of mapped files included


def main(
    pairs: Annotated[list[int] | None, typer.Argument(help="numbers of pairs; 62,500, 125,000, 250,000 unless named")],
    folder: Annotated[Path | None, typer.Option(help="where the data goes; a temporary one unless named")] = None,
) -> None:
    """Make so many pairs, and a tenth as many demonstrations and prompts; prepare, validate and pack them."""
    table = Table("pairs", "stage", "CPU s", "µs a pair", "wall s", "peak MiB")
    with tempfile.TemporaryDirectory(dir=folder) as temporary_folder:
        base = Path(temporary_folder) / "base"
        make_base(base)
        for count in pairs or [62_500, 125_000, 250_000]:
            place = Path(temporary_folder) / str(count)
            make_rows(place, count)
            shutil.copytree(base / MODELS, place / MODELS)
            for stage, module in STAGES.items():
                cost = run(module, place)
                row = [f"{count:,}", stage, f"{cost.cpu:.1f}", f"{cost.cpu / count * 1e6:.0f}", f"{cost.wall:.1f}"]
                table.add_row(*row, f"{cost.memory:.0f}")
                Console(stderr=True).print(count, stage, cost)
            shutil.rmtree(place)
    Console().print(table)


def make_base(folder: Path) -> None:
    """Write the base model of the shipped settings, with room for longer rows."""
    folder.mkdir()
    write_settings(folder)
    run("tasks.base", folder)


def write_settings(folder: Path) -> None:
    """Write the project's settings with sources of that folder."""
    editor = YAML()
    editor.preserve_quotes = True  # parsers of YAML disagree about a colon in a text without them
    settings: dict[str, Any] = editor.load(ROOT / PARAMS_FILE)
    settings["prepare"]["ratings"]["source"] = NO_ROWS
    for kind in ("demonstrations", "preferences", "prompts"):
        settings["prepare"][kind]["source"] = f"{kind}.jsonl"
    settings["base"]["source"] = str(ROOT / settings["base"]["source"])
    settings["base"]["scratch"]["context"] = settings["validate"]["max_tokens"] = LONGEST
    editor.dump(settings, folder / PARAMS_FILE)
    (folder / settings["prepare"]["exclude"]).touch()


def make_rows(folder: Path, count: int) -> None:
    """Write raw rows of made-up words, of lengths that are log-normal."""
    folder.mkdir()
    write_settings(folder)
    source = random.Random(SEED)
    words = [
        "".join(source.choices(("an", "ber", "co", "dis", "er", "fo", "ing", "st"), k=1 + n % 4)) for n in range(5000)
    ]
    weights = list(itertools.accumulate(1 / (place + 2.7) for place in range(len(words))))

    def text(mean: int) -> str:
        drawn = round(
            source.lognormvariate(math.log(mean) - 0.32, 0.8)
        )  # a spread of .8 lifts the mean by exp(.8^2 / 2)
        return " ".join(source.choices(words, cum_weights=weights, k=max(3, min(4 * mean, drawn))))

    def rows(kind: str, number: int, *answers: str) -> Iterator[dict[str, str]]:
        for place in range(number):
            yield {"prompt": f"{kind} {place}: {text(10)}", **{answer: text(12) for answer in answers}}

    write_jsonl(folder / "preferences.jsonl", rows("pair", count, "chosen", "rejected"))
    write_jsonl(folder / "demonstrations.jsonl", rows("demonstration", count // 10, "response"))
    write_jsonl(folder / "prompts.jsonl", rows("prompt", count // 10))


def run(module: str, folder: Path) -> Cost:
    """Run a module in a folder and measure the process.

    Raises:
        SystemExit: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", module, *(["--pack"] if module == STAGES["pack"] else [])]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{module} failed in {folder}")
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 1024)


def pack() -> None:
    """Encode the training pairs of the working folder and lay out one epoch as the trainers do, without a model."""
    from tasks.data.encoding.encoded import encoded_preferences
    from tasks.data.encoding.tokens import load_tokenizer
    from tasks.learning.batches import collate_pairs, training_batches
    from tasks.learning.processes import micro_batches_of_rank

    pairs = encoded_preferences(VALIDATED, "train", load_tokenizer(MODELS / "base"), LONGEST)
    lengths = (2 * pairs.lengths).tolist()
    tokens = 0
    for _, items in training_batches(len(pairs), BATCH_SIZE, 1, SEED):
        for group in micro_batches_of_rank(items, lengths, TOKENS):
            tokens += collate_pairs([pairs[item] for item in group.items]).packing.input_ids.numel()
    print(json.dumps({"pairs": len(pairs), "tokens": tokens}), file=sys.stderr)


if __name__ == "__main__":
    pack() if sys.argv[1:] == ["--pack"] else typer.run(main)
