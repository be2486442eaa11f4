"""The promise to people with bad input: exit code 2, one sentence with place and cure, and earlier outputs unchanged.

One table of all that can be wrong, each case through the very function that runs a stage as a process. What else a
stage does with bad input is tested beside the stage.
"""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tasks import stage as stage_module
from tasks.common.files import AI_VALIDATED, METRICS, MODELS, PREPARED, REPORTS, STATE, VALIDATED
from tasks.data.records import Demonstration, Message, write_records
from tasks.rewards.copies import GROUND_TRUTH, TRAINING
from tasks.rewards.sources import write_copies
from tasks.stage import main
from tests.conftest import write_workspace_records

ROOT = Path(__file__).parents[1]
KINDS = ("demonstrations", "preferences", "ratings", "prompts")
OUTPUTS = {
    "prepare": [*(PREPARED / f"{kind}.jsonl" for kind in (*KINDS, "ai_preferences")), METRICS / "prepare.json"],
    "base": [MODELS / "base/model.safetensors", METRICS / "base.json"],
    "validate": [
        *(VALIDATED / f"{kind}.jsonl" for kind in (*KINDS, "quarantine")),
        *(AI_VALIDATED / f"{kind}.jsonl" for kind in ("ai_preferences", "quarantine")),
        METRICS / "validate.json",
    ],
    "sft": [MODELS / "sft/model.safetensors", METRICS / "sft.json", Path("curves/sft.csv")],
    "evaluate": [REPORTS / "evaluate/responses.jsonl", METRICS / "evaluate.json"],
}


class Workshop(NamedTuple):
    """What a case may spoil: the settings, the files in the working folder, and what the system answers."""

    settings: dict[str, Any]
    patch: pytest.MonkeyPatch
    tiny_model: Path

    def read(self, kind: str, file: str, content: bytes | None = None) -> None:
        """Have prepare read a kind of rows from a file of this content; None: from a file that is not there."""
        self.settings["prepare"][kind]["source"] = file
        if content is not None:
            Path(file).write_bytes(content)

    def start_from_folder(self) -> Path:
        """Have base copy a model folder, to be spoilt."""
        self.settings["base"]["source"] = "given"
        shutil.copytree(self.tiny_model, "given")
        return Path("given")


class Case(NamedTuple):
    """Something that is wrong."""

    stage: str
    spoil: Callable[[Workshop], object]
    sentence: tuple[str, ...]  # words of the sentence: the place, then the cure


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Iterator[Workshop]:
    """Good input of every stage, and a test process that neither dies with its parent nor keeps a signal handler."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage_module, "exit_with_parent", lambda: None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    settings = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    settings["runtime"] |= {"device": "cpu", "threads": 1}
    shutil.copy(ROOT / "exclude.txt", "exclude.txt")
    shutil.copytree(ROOT / "infra", "infra")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Workshop(settings, monkeypatch, tiny_model)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def pairs(count: int) -> bytes:
    rows = ({"prompt": f"q{n}", "chosen": f"a{n}", "rejected": "no"} for n in range(count))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_with(bad: bytes) -> Callable[[Workshop], None]:
    """Two good rows before a bad one."""
    return lambda shop: shop.read("preferences", "mine.jsonl", pairs(2) + bad)


def source_of(content: bytes | None) -> Callable[[Workshop], None]:
    return lambda shop: shop.read("preferences", "mine.jsonl", content)


def setting(section: str, key: str, value: object) -> Callable[[Workshop], None]:
    return lambda shop: shop.settings[section].update({key: value})


def zeros_without_end(shop: Workshop) -> None:
    Path("mine.jsonl").symlink_to("/dev/zero")
    shop.read("preferences", "mine.jsonl")


def column_map_of_nothing(shop: Workshop) -> None:
    shop.read("preferences", "mine.jsonl", pairs(2))
    shop.settings["prepare"]["preferences"]["columns"] = {"prompt": "question"}


def full_disk(shop: Workshop) -> None:
    """Every text that is written, rows, figures and notes, goes to a device without space."""
    opened = Path.open

    def full(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        return opened(Path("/dev/full") if mode == "w" else path, mode, *arguments, **options)

    shop.patch.setattr(Path, "open", full)


def no_place_for_a_byte(shop: Workshop) -> None:
    """The disk is full before the work."""

    def full(**_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shop.patch.setattr("tempfile.TemporaryFile", full)


def no_permission(shop: Workshop) -> None:
    """The tests may run as root, whom no mode of a folder stops."""
    made = Path.mkdir

    def refused(path: Path, *arguments: Any, **options: Any) -> None:
        if path == PREPARED.parent:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        made(path, *arguments, **options)

    shop.patch.setattr(Path, "mkdir", refused)


def all_rows_invalid(shop: Workshop) -> None:
    shutil.copytree(shop.tiny_model, MODELS / "base")
    write_workspace_records()
    VALIDATED.rename(PREPARED)
    (AI_VALIDATED / "ai_preferences.jsonl").rename(PREPARED / "ai_preferences.jsonl")
    asked = [Message(role="user", content="q")]
    empty = [Demonstration(f"{n}", "train", "mine.jsonl", n, asked, " ") for n in range(1, 10)]
    write_records(PREPARED, "demonstrations", empty)


def too_long_a_prompt(shop: Workshop) -> None:
    shutil.copytree(shop.tiny_model, MODELS / "base")
    write_workspace_records()
    asked = [Message(role="user", content="order " * 200)]
    write_records(VALIDATED, "demonstrations", [Demonstration("1", "train", "mine.jsonl", 31, asked, "we refund it")])


def a_compiled_models_weights(shop: Workshop) -> None:
    from safetensors.torch import load_file, save_file

    path = shop.start_from_folder() / "model.safetensors"
    save_file({f"_orig_mod.{key}": tensor for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def a_pipe_for_weights(shop: Workshop) -> None:
    path = shop.start_from_folder() / "model.safetensors"
    path.unlink()
    os.mkfifo(path)


def a_link_to_a_secret(shop: Workshop) -> None:
    Path("secret").write_text("{}")
    (shop.start_from_folder() / "merges.txt").symlink_to(Path("secret").absolute())


def no_tokenizer(shop: Workshop) -> None:
    (shop.start_from_folder() / "tokenizer.json").unlink()


def raising_template(shop: Workshop) -> None:
    template = shop.start_from_folder() / "chat_template.jinja"
    template.write_text("{{ raise_exception('roles must\nalternate') }}")


def pad_equal_to_eos(shop: Workshop) -> None:
    path = shop.start_from_folder() / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|im_end|>"}))


def unreachable_mlflow(shop: Workshop) -> None:
    write_workspace_records()
    shutil.copy(ROOT / "opponent.json", "opponent.json")
    for model in (shop.settings["align"]["stage"], "sft", "reward", "held_out_reward"):
        (MODELS / model).mkdir(parents=True)
    for folder in (TRAINING, GROUND_TRUTH):
        write_copies(folder, [])
    shop.patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")


CASES = {
    "exclusion that names nothing": Case(
        "prepare",
        lambda _shop: Path("exclude.txt").write_text("row a\nb\n"),
        ("exclude.txt row 2 names nothing to exclude", "write `row ID`, `source NAME` or `annotator NAME`"),
    ),
    "missing file": Case(
        "prepare", source_of(None), ("mine.jsonl does not exist", "fix the path of the source in params.yaml")
    ),
    "no path": Case(
        "prepare", lambda shop: shop.read("preferences", ""), ("prepare.preferences.source is ''", "change it")
    ),
    "a character that no path has": Case(
        "prepare", lambda shop: shop.read("preferences", "a\0b"), ("prepare.preferences.source is", "change it")
    ),
    "a name too long": Case(
        "prepare", lambda shop: shop.read("preferences", "x" * 300), ("xxx cannot be read (File name too", "fix its")
    ),
    "empty file": Case("prepare", source_of(b""), ("mine.jsonl holds no rows", "fill it, or name another source")),
    "cut-off line": Case(
        "prepare",
        rows_with(b'{"prompt": "q", "chosen": "a'),
        ("mine.jsonl row 3 is not valid JSON, perhaps cut off", "fix or remove the row"),
    ),
    "wrong encoding": Case(
        "prepare",
        rows_with('{"prompt": "Größe"}\n'.encode("latin-1")),
        ("mine.jsonl row 3 is not UTF-8 text", "save the file as UTF-8"),
    ),
    "missing columns": Case(
        "prepare",
        source_of(b'{"question": "q", "answer": "a"}\n'),
        ("mine.jsonl has the columns question, answer", "name yours under prepare.preferences.columns"),
    ),
    "a column missing in one row": Case(
        "prepare",
        rows_with(b'{"prompt": "q", "chosen": "a"}\n'),
        ("mine.jsonl row 3: the column rejected is missing", "fix or remove the row"),
    ),
    "wrong type": Case(
        "prepare",
        rows_with(b'{"prompt": "q", "chosen": 1, "rejected": "b"}\n'),
        ("mine.jsonl row 3: chosen", "fix or remove the row"),
    ),
    "many bad rows": Case(
        "prepare",
        rows_with(b'{"prompt": "q", "chosen": 1, "rejected": "b"}\n' * 100_000),
        ("mine.jsonl has 100,000 bad rows: rows 3, 4, 5, 6, 7, 8, 9, 10, 11, 12: chosen", "fix or remove them"),
    ),
    "a value of five megabytes": Case(
        "prepare",
        rows_with(
            b'{"prompt": [{"role": "' + b"x" * 5_000_000 + b'", "content": "q"}], "chosen": "a", "rejected": "b"}\n'
        ),
        ("mine.jsonl row 3: message 1 of prompt has the role 'xxx", "(5,000,000 characters)", "fix or remove the row"),
    ),
    "lists of 3,000 levels": Case(
        "prepare",
        rows_with(b'{"prompt": "q", "chosen": ' + b"[" * 3000 + b"]" * 3000 + b', "rejected": "b"}\n'),
        ("mine.jsonl row 3 is not valid JSON (lists or objects nested too deeply)", "write it with fewer levels"),
    ),
    "a device": Case(
        "prepare",
        zeros_without_end,
        ("mine.jsonl is a pipe, socket or device", "write its rows to a file"),
    ),
    "a device in place of the exclusions": Case(
        "prepare",
        setting("prepare", "exclude", "/dev/zero"),
        ("/dev/zero is a pipe, socket or device", "write its rows to a file"),
    ),
    "unknown parameter": Case(
        "prepare", setting("sft", "epoch", 3), ("params.yaml: sft.epoch is not a setting", "correct its spelling")
    ),
    "ill-typed parameter": Case(
        "prepare", setting("sft", "epochs", "three"), ("params.yaml: sft.epochs is 'three'", "change it")
    ),
    "a column map that names nothing": Case(
        "prepare",
        column_map_of_nothing,
        ("prepare.preferences.columns in params.yaml maps prompt to 'question'", "mine.jsonl", "name one of them"),
    ),
    "one pair": Case(
        "prepare", source_of(pairs(1)), ("mine.jsonl: its 1 preferences leave nothing for", "so add rows or raise")
    ),
    "full disk": Case("prepare", full_disk, ("no space left on the disk of /", "free some and run again")),
    "a disk that is full before the work": Case(
        "prepare", no_place_for_a_byte, ("the checkout /", "is on a full disk: free some of it, or move it")
    ),
    "an output folder that is a link": Case(
        "prepare",
        lambda _shop: Path("curves").symlink_to("/dev/shm"),
        ("curves is a link to /dev/shm, where DVC stores no outputs", "make it a folder of the checkout again"),
    ),
    "no permission": Case("prepare", no_permission, ("no permission for data", "grant it or run as its owner")),
    "no tokenizer": Case("base", no_tokenizer, ("given has no tokenizer", "save the model's tokenizer there")),
    "weights of a wrapper": Case(
        "base",
        a_compiled_models_weights,
        ("given: its weights do not belong to its config.json", "model._orig_mod.save_pretrained"),
    ),
    "a pipe for weights": Case("base", a_pipe_for_weights, ("model.safetensors is no regular file", "remove it")),
    "a link out of the folder": Case(
        "base", a_link_to_a_secret, ("given: the link merges.txt leads out of the folder", "put the file itself there")
    ),
    "a template that raises": Case(
        "base",
        raising_template,
        ("given: its chat template refuses the conversation (roles must", "fix it or set base.chat_template"),
    ),
    "pad equal to end of sequence": Case(
        "base",
        pad_equal_to_eos,
        ("given: its tokenizer pads with its end-of-sequence token", "name one, as in base.pad_token: '<|pad|>'"),
    ),
    "all rows invalid": Case(
        "validate",
        all_rows_invalid,
        ("data/prepare/demonstrations.jsonl: 9 of 9 rows are bad", "fix the rows or raise it", "first mine.jsonl:1"),
    ),
    "a prompt longer than the context": Case(
        "sft",
        too_long_a_prompt,
        ("mine.jsonl row 31: prompt and answer need", "the model's context is 128", "shorten the row"),
    ),
    "MLflow out of reach": Case(
        "evaluate",
        unreachable_mlflow,
        ("MLflow at http://127.0.0.1:9 cannot be used", "start it, fix MLFLOW_TRACKING_URI, or unset it"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_gives_one_sentence_and_keeps_earlier_outputs(workshop, name, capfd, caplog):
    stage, spoil, words = CASES[name]
    for path in OUTPUTS[stage]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"earlier {path.name}")
    spoil(workshop)
    Path("params.yaml").write_bytes(yaml.safe_dump(workshop.settings, allow_unicode=True).encode())
    before = contents()
    stage_function = getattr(import_module(f"tasks.{stage}"), stage)
    capfd.readouterr()

    started = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        main(stage_function)

    assert stopped.value.code == 2
    assert time.monotonic() - started < 60  # a few seconds, even on a busy machine far from MLflow's own five minutes
    (sentence,) = capfd.readouterr().err.splitlines()
    assert sentence.startswith(f"{stage}: ")
    assert_in_order(words, sentence)
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
    assert contents() == before


def contents() -> dict[str, bytes]:
    """Every file of the working folder but what a checkout keeps to itself; drafts would be seen too."""
    own = {STATE, Path(".git"), Path(".dvc")}
    paths = [path for path in Path().rglob("*") if path.is_file() and own.isdisjoint(path.parents)]
    return {path.as_posix(): path.read_bytes() for path in paths}


def assert_in_order(words: tuple[str, ...], sentence: str) -> None:
    place = 0
    for word in words:
        assert word in sentence[place:], f"{word!r} is not behind the others in: {sentence}"
        place = sentence.index(word, place) + len(word)
