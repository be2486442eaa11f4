from pathlib import Path

import pytest
import yaml

from flows.settings import Change, configure
from tasks.errors import InputError
from tasks.params import load_params

ROOT = Path(__file__).parents[2]
NAMED = sorted((ROOT / "infra/settings").glob("*.yaml"))


@pytest.fixture(autouse=True)
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    return path


def test_only_the_named_line_changes(params: Path) -> None:
    before = params.read_text().splitlines()

    assert configure(["align.method=dpo"]) == [Change("align.method", "ppo", "dpo")]

    after = params.read_text().splitlines()
    assert [(old, new) for old, new in zip(before, after, strict=True) if old != new] == [
        ("  method: ppo", "  method: dpo")
    ]


def test_null_and_lists_and_columns() -> None:
    configure(["evaluate.prompts=50", "validate.warn=[length_bias]", "prepare.prompts.columns={prompt: question}"])
    settings = load_params()
    assert settings.evaluate.prompts == 50
    assert settings.validate_.warn == ["length_bias"]
    assert settings.prepare.prompts.columns == {"prompt": "question"}

    configure(["dpo.learning_rate=1e-5", "evaluate.prompts=null"])
    assert load_params().dpo.learning_rate == 1e-5
    assert load_params().evaluate.prompts is None
    assert "prompts: null" in Path("params.yaml").read_text()


def test_a_mapping_in_the_place_of_null_stays_in_its_line(params: Path) -> None:
    before = params.read_text().splitlines()
    configure(["evaluate.llm_judge={url: 'http://localhost/v1', model: m, prompts: 20}"])
    configure(["evaluate.llm_judge.prompts=null"])

    lines = params.read_text().splitlines()
    assert [new for old, new in zip(before, lines, strict=True) if old != new] == [
        "  llm_judge: {url: http://localhost/v1, model: m, prompts: null}"
    ]
    configure(["evaluate.llm_judge=null"])
    assert params.read_text().splitlines() == before


def test_later_overlays_win_over_a_file(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("sft: {epochs: 5, batch_size: 4}\n")

    configure([str(overlay), "sft.epochs=2"])

    assert (load_params().sft.epochs, load_params().sft.batch_size) == (2, 4)


@pytest.mark.parametrize(
    ("overlay", "sentence"),
    [
        ("sft.epoch=2", "sft.epoch is not a setting"),
        ("nothing=2", "nothing is not a setting"),
        ("sft.epochs=two", "sft.epochs is 'two'"),
        ("sft.epochs=[1", "not valid YAML"),
        ("sft=3", "sft is 3"),
        ("absent.yaml", "absent.yaml does not exist"),
        ("folder", "cannot be read"),
        ("words.yaml", "holds no settings"),
    ],
)
def test_bad_overlays_write_nothing(params: Path, tmp_path: Path, overlay: str, sentence: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "words.yaml").write_text("only words\n")
    before = params.read_bytes()

    with pytest.raises(InputError, match=sentence.replace("[", r"\[")):
        configure(["seed=8", overlay])

    assert params.read_bytes() == before


@pytest.mark.parametrize("named", NAMED, ids=lambda path: path.stem)
def test_named_settings_hold_and_keep_every_comment(params: Path, named: Path) -> None:
    comments = [line for line in params.read_text().splitlines() if line.lstrip().startswith("#")]

    assert configure([str(named)])

    written = params.read_text()
    assert [line for line in written.splitlines() if line.lstrip().startswith("#")] == comments
    assert yaml.safe_load(written)["base"]["pad_token"] == "<|endoftext|>"
