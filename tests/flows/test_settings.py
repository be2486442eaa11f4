import json
import re
from pathlib import Path

import pytest
import yaml
from dvc.utils.serialize import load_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.settings import Change, configure
from tasks.common.errors import InputError
from tasks.common.yaml_files import difference, read_yaml
from tasks.settings.fingerprint import flatten
from tasks.settings.params import load_params

ROOT = Path(__file__).parents[2]
NAMED = sorted((ROOT / "infra/settings").rglob("*.yaml"))


@pytest.fixture(autouse=True)
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_bytes((ROOT / "params.yaml").read_bytes())
    return path


def test_only_the_named_line_changes(params: Path) -> None:
    before = params.read_text().splitlines()

    assert configure(["align.method=dpo"]) == [
        Change("align.method", "ppo", "dpo"),
        Change("align.stage", "ppo", "dpo"),
    ]

    after = params.read_text().splitlines()
    assert [(old, new) for old, new in zip(before, after, strict=True) if old != new] == [
        ("  method: ppo", "  method: dpo"),
        ("  stage: ppo", "  stage: dpo"),
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
        '  llm_judge: {url: "http://localhost/v1", model: m, prompts: null}'
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
        ("rewards.training.model.weight=2", "rewards.training.model names no entry of the list: .* (reward_model)"),
        ("validate.warn.length_bias=2", "validate.warn.length_bias names no entry of the list: .* (none)"),
        ("absent.yaml", "absent.yaml does not exist"),
        ("folder", "folder is not a file"),
        ("words.yaml", "holds no settings"),
    ],
)
def test_bad_overlays_write_nothing(params: Path, tmp_path: Path, overlay: str, sentence: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "words.yaml").write_text("only words\n")
    before = params.read_bytes()

    with pytest.raises(InputError, match=re.sub(r"([\[()])", r"\\\1", sentence)):
        configure(["seed=8", overlay])

    assert params.read_bytes() == before


def test_a_list_that_is_replaced_leaves_the_comments_behind_it(params: Path) -> None:
    before = params.read_text()

    assert configure(["rewards.training=[{name: order_rule_too, source: infra/example/rewards.py:score, weight: 0.5}]"])
    assert configure(["rewards.ground_truth=[]"])

    comments = [[line for line in text.splitlines() if "#" in line] for text in (before, params.read_text())]
    assert comments[0] == comments[1]
    assert load_params().rewards.ground_truth == []


def test_a_list_of_several_entries_stays_above_the_comments_behind_it(params: Path) -> None:
    before = params.read_text()
    entries = [f"{{name: {name}, source: exact_match, options: {{}}, weight: 1.0}}" for name in ("one", "two")]
    change = f"rewards.training=[{', '.join(entries)}]"
    assert configure([change])
    assert [line for line in params.read_text().splitlines() if "#" in line] == [
        line for line in before.splitlines() if "#" in line
    ]
    assert params.read_text().index("name: two") < params.read_text().index("# How several are combined")
    assert configure([change]) == []
    assert configure(["seed=8"])


def test_an_entry_of_a_list_is_found_by_its_name() -> None:
    configure(["rewards.training.reward_model.weight=0.5", "rewards.ground_truth.order_rule.options.strict=true"])

    rewards = load_params().rewards
    assert rewards.training[0].weight == 0.5
    assert rewards.ground_truth[0].options == {"strict": True}


def test_a_new_source_brings_its_own_options() -> None:
    configure(["prepare.prompts={source: rows.py, options: {folder: films}}"])
    assert load_params().prepare.prompts.options == {"folder": "films"}

    configure(["prepare.prompts.options.folder=books", "prepare.prompts.options.size=3"])
    assert load_params().prepare.prompts.options == {"folder": "books", "size": 3}


@pytest.mark.parametrize("named", NAMED, ids=lambda path: path.stem)
def test_named_settings_hold_and_keep_every_comment(params: Path, named: Path) -> None:
    comments = [line for line in params.read_text().splitlines() if line.lstrip().startswith("#")]

    assert configure([str(named)])

    written = params.read_text()
    assert [line for line in written.splitlines() if line.lstrip().startswith("#")] == comments
    found, asked = (flatten(yaml.safe_load(text)) for text in (written, named.read_text(encoding="utf-8")))
    assert {key: found[key] for key in asked} == asked


def test_named_settings_by_size_set_every_rate_and_say_whether_they_were_measured() -> None:
    rates = {f"{stage}.learning_rate" for stage in ("sft", "reward", "held_out_reward", "dpo", "kto", "ppo")}
    sizes = [path for path in NAMED if path.parent.name == "sizes"]
    weights = [f"{size}-{kind}" for size in ("0.5b", "1.5b", "135m", "7b") for kind in ("full", "lora")]
    assert [path.stem for path in sizes] == weights
    for path in sizes:
        text = path.read_text(encoding="utf-8")
        asked = flatten(yaml.safe_load(text))
        assert rates < set(asked)
        assert (asked["lora.rank"] > 0) is path.stem.endswith("lora")
        assert ("NOT MEASURED" in text) is (path.stem != "135m-lora")


def test_an_address_is_written_as_dvc_reads_it() -> None:
    configure(['evaluate.llm_judge={url: "http://127.0.0.1:8000/v1", model: m, prompts: 12}'])
    judge = load_yaml("params.yaml")["evaluate"]["llm_judge"]
    assert judge == {"url": "http://127.0.0.1:8000/v1", "model": "m", "prompts": 12}


@pytest.mark.parametrize(
    "text", ["yes", "No", "y", "12:30", "2026-01-01", "a: b", "#", "~", "=", "<<", "it's", "Größe", " "]
)
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    configure([f"base.pad_token={yaml.safe_dump(text, allow_unicode=True)}"])
    read = load_params().base.pad_token
    assert read == text
    assert load_yaml("params.yaml")["base"]["pad_token"] == text
    assert yaml.safe_load(Path("params.yaml").read_text())["base"]["pad_token"] == text


# YAML takes the character 85 within a text for the end of a line; where it is written as an escape, no setting has it.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x85")
TEXTS = st.text(CHARACTERS, max_size=20) | st.from_regex(
    r"[-+]?[0-9][0-9_.:eoxb-]{0,8}|[yYnNoOtTfF~=<>.][a-zA-Z.]{0,4}", fullmatch=True
)
NUMBERS = st.floats(min_value=1e-12, max_value=1e12) | st.integers(min_value=1, max_value=2**53)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns=st.dictionaries(TEXTS, TEXTS, max_size=3), number=NUMBERS, words=st.lists(TEXTS, max_size=3))
def test_all_readers_read_alike_what_is_written(
    params: Path, columns: dict[str, str], number: float, words: list[str]
) -> None:
    """Whatever text and numbers: DVC's reader, ours and PyYAML give back what was asked for, or nothing is written."""
    wanted = {
        "prepare": {"prompts": {"columns": columns}},
        "validate": {"warn": words},
        "lora": {"alpha": number},
        "base": {"chat_template": words[0] if words else None},
    }
    params.write_bytes((ROOT / "params.yaml").read_bytes())
    before = params.read_bytes()
    overlay = params.with_name("overlay.yaml")
    overlay.write_text(json.dumps(wanted, ensure_ascii=False), encoding="utf-8", errors="backslashreplace")
    try:
        configure([str(overlay)])
    except InputError:
        assert params.read_bytes() == before
        return
    text = params.read_text()
    load_params()
    ours = read_yaml(params)
    for read in (load_yaml(params), yaml.safe_load(text)):
        assert difference(ours, read) is None
        assert read["prepare"]["prompts"]["columns"] == columns
        assert (read["validate"]["warn"], read["lora"]["alpha"]) == (words, number)


def test_every_such_text_can_be_written(params: Path) -> None:
    """The property above would hold, too, where nothing is ever written."""
    texts = [
        "",
        "a b",
        "a:b",
        "12",
        "1e5",
        "0x1F",
        "true",
        "- a",
        "{a}",
        "a #b",
        "\t",
        "\n",
        "\x1b",
        "\u2028",
        "\U0001f600",
        "é",
    ]
    wanted = {text or "none": text for text in texts}
    configure([f"prepare.prompts.columns={json.dumps(wanted, ensure_ascii=False)}"])
    assert load_yaml(params)["prepare"]["prompts"]["columns"] == wanted


@pytest.mark.parametrize("key", [".".join("a" * 3000), "seed.", ".seed", "a" * 5000])
def test_a_key_that_no_setting_has(key: str) -> None:
    with pytest.raises(InputError) as refused:
        configure([f"{key}=1"])
    assert len(str(refused.value)) < 4100


def test_a_value_longer_than_any_file_name() -> None:
    configure([f"runtime.launcher=env {'A' * 400} python -m"])
    assert len(load_params().runtime.launcher) > 400
