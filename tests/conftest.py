"""Fixtures of several tests: a tiny model folder, small settings, a workspace, and a run that only notes."""

import hashlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.common.files import AI_VALIDATED, MODELS, VALIDATED
from tasks.data.records import (
    TRAINING_ONLY,
    TYPES,
    Demonstration,
    Kind,
    Message,
    Preference,
    Prompt,
    Rating,
    Split,
    read_records,
    write_records,
)
from tasks.methods import METHODS
from tasks.settings.params import Params, parse_params

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for the network
# Before torch is loaded: threads that wait for a core another test has wait in a loop, and take both.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `dvc` and the `python` of its commands are those beside this interpreter, whether or not its environment is activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
# A shell's background jobs ignore Ctrl+C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
EXAMPLE = "infra/example/orders.py"  # makes the rows of the shipped settings, and the text of their tokenizer
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["please", "send", "the", "order", "back", "we", "refund", "it", "today", "sorry", "thanks", "no", "yes", "now"]
MODEL_FILES = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
# Small and quick, whatever params.yaml says.
SMALL: dict[str, dict[str, Any]] = {
    "runtime": {
        "device": "cpu",
        "threads": 1,
        "precision": "fp32",
        "max_tokens_per_micro_batch": 100,
        "max_concurrent_sequences": 4,
        "checkpoint_every": 2,
    },
    "lora": {"rank": 0},
    "sft": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2},
    "reward": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2},
    "held_out_reward": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2},
    "dpo": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "beta": 0.1, "nll_weight": 0.0},
    "kto": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3},
}

OF_PEOPLE: tuple[Kind, ...] = tuple(kind for kind in TYPES if kind not in TRAINING_ONLY)

SLOW = 2  # CPU seconds of a test, fixtures apart: twice the aim of one, because they vary

MakeParams = Callable[..., Params]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave tests/services unread where it is not wanted: it imports what only `make test-services` installs."""
    is_unwanted = "not services" in config.getoption("markexpr")
    return True if is_unwanted and collection_path == Path(__file__).with_name("services") else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Measure the CPU time of a test and the processes that it waits for: the clock depends on what else runs."""
    before = sum(os.times()[:4])
    yield
    item.user_properties.append(("cpu", sum(os.times()[:4]) - before))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name the tests that make `make check` slow."""
    for report in terminalreporter.stats.get("passed", []):
        seconds = dict(report.user_properties).get("cpu", 0)
        if seconds > SLOW and "slow" not in report.keywords:
            terminalreporter.write_line(f"slow and not marked so: {report.nodeid} took {seconds:.1f} CPU seconds")


class NotedRun:
    """Stands for a run in MLflow: records what is logged, so that tests can ask."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.figures: dict[str, Any] = {}
        self.folders: list[Path] = []
        self.tables: dict[str, list[Mapping[str, Any]]] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append((step, dict(metrics)))

    def summary(self, metrics: Mapping[str, Any]) -> None:
        self.figures = dict(metrics)

    def model(self, folder: Path) -> None:
        self.folders.append(folder)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.tables[name] = list(rows)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer Llama of random weights and a byte-level tokenizer with the ChatML template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_tokenizer(template: str | None = CHATML) -> Any:
    """A byte-level tokenizer of 300 tokens; every string can be written in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def make_params() -> MakeParams:
    """Settings of params.yaml made small, with sections overridden: make_params(sft={"epochs": 3})."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    del settings["align"]["stage"]  # it follows from the method

    def make(**sections: Any) -> Params:
        merged = {
            name: {**section, **SMALL.get(name, {}), **sections.get(name, {})}
            if isinstance(section, dict)
            else sections.get(name, section)
            for name, section in settings.items()
        }
        if method := METHODS.get(merged["align"]["method"]):
            merged["align"].setdefault("stage", method.stage)
        return parse_params(merged, "test")

    return make


@pytest.fixture
def params(make_params: MakeParams) -> Params:
    """The small settings as they are."""
    return make_params()


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """A working folder with models/base, models/sft and a few checked records in every split."""
    monkeypatch.chdir(tmp_path)
    for stage in ("base", "sft"):
        shutil.copytree(tiny_model, MODELS / stage)
    write_workspace_records()
    return tmp_path


def write_workspace_records() -> None:
    """Ten training records of each kind and four in each held-out split; answers of several lengths."""
    sizes: dict[Split, int] = {"train": 10, "validation": 4, "test": 4}
    places = [(split, number) for split, size in sizes.items() for number in range(size)]
    shared = [
        (f"{split}{number}", split, "raw.jsonl", row, [Message(role="user", content=f"order {row} {_words(row, 2)}")])
        for row, (split, number) in enumerate(places, start=1)
    ]
    write_records(VALIDATED, "demonstrations", [Demonstration(*s, _words(s[3], 3 + s[3] % 4)) for s in shared])
    write_records(
        VALIDATED, "preferences", [Preference(*s, _words(s[3], 3 + s[3] % 3), _words(s[3] + 5, 4)) for s in shared]
    )
    write_records(VALIDATED, "ratings", [Rating(*s, _words(s[3] + 2, 2 + s[3] % 4), s[3] % 3 > 0) for s in shared])
    write_records(VALIDATED, "prompts", [Prompt(*s, [_words(s[3], 3)]) for s in shared])
    write_records(AI_VALIDATED, "ai_preferences", [])


def rows_from(kind: str, source: str, **options: Any) -> dict[str, Any]:
    """The settings of a kind of rows: all of a source, by its own columns."""
    settings: dict[str, Any] = {"source": source, "columns": {}, "ignore": [], "limit": None, "options": options}
    own: dict[str, dict[str, Any]] = {"prompts": {"extra_columns": {}, "test_only": []}, "ratings": {"threshold": None}}
    return settings | own.get(kind, {})


def records_of(folder: Path, kind: Kind, split: Split | None = None) -> list[Any]:
    """The records of one kind, of one split or of all."""
    return list(read_records(folder, kind, split))


def _words(start: int, count: int) -> str:
    return " ".join(WORDS[(start + 3 * place) % len(WORDS)] for place in range(count))


@pytest.fixture
def noted_run(monkeypatch: pytest.MonkeyPatch) -> NotedRun:
    """Stages log to this object in place of MLflow."""
    from tasks.registry.mlflow_runs import tracking

    noted = NotedRun()

    @contextmanager
    def run(stage: str, params: Params, inputs: object = ()) -> Iterator[NotedRun]:
        yield noted

    monkeypatch.setattr(tracking, "run", run)
    return noted


@pytest.fixture(autouse=True)
def _forget_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision for a process; a stage is a process of its own, tests are not."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


def output_hashes(stage: str) -> dict[str, str]:
    """SHA-256 of every file that a trainer leaves."""
    folder = MODELS / stage
    files = (f"metrics/{stage}.json", f"curves/{stage}.csv", f"reports/{stage}/answers.jsonl")
    paths = [*folder.rglob("*"), *map(Path, files)]
    return {path.as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def file_names(stage: str) -> list[str]:
    """What lies in a trainer's model folder."""
    return sorted(path.name for path in (MODELS / stage).iterdir())


def moved_weights(before: Path, after: Path) -> set[str]:
    """Names of the weights that two model folders share and that differ."""
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (before, after))
    return {name for name in first.keys() & second.keys() if not first[name].equal(second[name])}
