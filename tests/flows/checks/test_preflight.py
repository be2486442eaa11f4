"""What DVC would trip over, or wait for, is reported before it starts."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.checks.preflight import check_exists, preflight
from flows.inspection.doctor import check_settings
from flows.inspection.plan import make_plan
from flows.settings import configure
from tasks.common.errors import InputError
from tasks.settings.params import NO_ROWS, load_params
from tests.conftest import EXAMPLE

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose pairs are read from a folder of one file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.checks.preflight.check_environment", lambda _params: None)  # test_surroundings.py
    for name in ("params.yaml", "exclude.txt", EXAMPLE, "infra/example/rewards.py", NO_ROWS):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, name)
    Path("pairs").mkdir()
    Path("pairs/a.jsonl").touch()
    configure(["prepare.preferences.source=pairs"])
    return Path("pairs")


def test_settings_come_back_where_all_is_well(folder: Path) -> None:
    (folder / "README.md").touch()  # which may be excluded: for prepare to judge
    assert preflight()[0].prepare.preferences.source == "pairs"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, r"pairs/b\.jsonl is a pipe, socket or device"),
        (lambda path: path.symlink_to("nothing"), r"pairs/b\.jsonl is a link to nothing"),
        (lambda path: Path(f"{path}.dvc").touch(), r"pairs/b\.jsonl does not exist, .*: run dvc pull"),
        (lambda path: path.with_name(os.fsdecode(b"\xe9.csv")).touch(), r"the name .* is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read(folder: Path, make, message: str) -> None:
    make(folder / "b.jsonl")
    with pytest.raises(InputError, match=f"^{message}"):
        preflight()


@pytest.mark.parametrize("name", ["exclude.txt", "base"])
def test_every_place_that_is_read_from_outside_is_looked_at(name: str) -> None:
    Path(name).unlink(missing_ok=True)
    os.mkfifo(name)
    configure(["base.source=base" if name == "base" else "seed=7"])
    with pytest.raises(InputError, match=rf"^{name} is a pipe, socket or device"):
        preflight()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, r"is a pipe, socket or device: remove it"),
        (lambda path: path.symlink_to("/dev/zero"), r"is a pipe, socket or device: remove it"),
        (lambda path: path.symlink_to("nothing"), r"is a link that leads nowhere: put the file there"),
    ],
)
def test_a_model_folder_that_dvc_could_not_read_to_its_end(make, message: str) -> None:
    Path("base/onnx").mkdir(parents=True)
    configure(["base.source=base"])
    preflight()
    make(Path("base/onnx/model.onnx"))
    with pytest.raises(InputError, match=rf"^base/onnx/model\.onnx {message}"):
        preflight()


@pytest.mark.parametrize("section", ["prepare", "rewards"])
def test_data_that_are_not_there(section: str) -> None:
    reader = "prepare.prompts" if section == "prepare" else "rewards.ground_truth.order_rule"
    configure([f"{section}.data=nowhere", f"{reader}.options.folder=nowhere"])
    with pytest.raises(InputError, match=rf"{section}\.data is nowhere, which does not exist: trueline configure"):
        preflight()


def test_a_name_that_no_file_can_have() -> None:
    message = r"^params\.yaml: base\.source is x*, which cannot be reached \(File name too long\): trueline configure"
    with pytest.raises(InputError, match=message):
        check_exists("base.source", "x" * 300)


def test_what_dvc_cannot_read_is_reported_before_it_starts_and_by_doctor() -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    judge = "llm_judge: {url: http://127.0.0.1:8000/v1, model: m, prompts: 12}"
    Path("params.yaml").write_text(text.replace("llm_judge: null", judge), encoding="utf-8")
    message = r"evaluate\.llm_judge\.url is 'http://127\.0\.0\.1:8000/v1' for one YAML parser, .* write \"http://127"
    with pytest.raises(InputError, match=rf"^params\.yaml row \d+: {message}"):
        preflight()
    [finding] = check_settings()
    assert (finding.check, finding.level) == ("settings", "fail")
    assert "DVC's cannot read it" in finding.found


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("length_limit", {"longest": 3, "shortest": 4}, "length_limit cannot score: its limits contradict each other"),
        ("length_limit", {"longst": 3}, "length_limit asks for longest"),
        ("regular_expression", {}, "regular_expression cannot score: it needs one of pattern and column"),
        ("json_schema", {"schema": {"type": "nothing"}}, "json_schema cannot score: "),
    ],
)
def test_a_verifier_whose_options_cannot_be_is_refused_before_anything_is_trained(
    source: str, options: dict[str, Any], message: str
) -> None:
    """One that asks for tokens was first called when rewards were checked, after reward models and SFT."""
    rewards = [{"name": "shape", "source": source, "options": options}]
    configure([f"rewards.ground_truth={json.dumps(rewards)}", f"rewards.code={EXAMPLE}"])
    with pytest.raises(InputError, match=f"^{message}"):
        preflight()
    with pytest.raises(InputError, match=f"^{message}"):
        make_plan(load_params())
