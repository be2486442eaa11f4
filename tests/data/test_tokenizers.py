"""What becomes of the base model's tokenizer: its files, its chat template, its padding token."""

import json
import shutil
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.data.base_model.templates import FROZEN_CLOCK, TEMPLATES
from tasks.data.base_model.tokenizers import resolve_tokenizer, try_rows
from tasks.data.encoding.tokens import load_tokenizer
from tasks.settings.params import load_params
from tests.conftest import CHATML

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder of one's own to spoil."""
    shutil.copytree(tiny_model, tmp_path / "given")
    return tmp_path / "given"


def resolve(folder: Path, **changes: object) -> None:
    settings = load_params(ROOT / "params.yaml").base
    resolve_tokenizer(folder, settings.model_copy(update={"source": "given", **changes}))


def edit(path: Path, **changes: object) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- The chat template


def test_where_nothing_is_to_do_the_bytes_stay_as_they_came(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = contents(folder)
    resolve(folder)
    assert contents(folder) == before
    assert caplog.messages == []


@pytest.mark.parametrize("choice", ["chatml", "plain"])
@pytest.mark.parametrize("own", ["chat_template.jinja", "list", None])
def test_the_template_of_the_settings_is_saved_in_the_place_of_the_models_own(
    folder: Path, choice: str, own: str | None
) -> None:
    if own != "chat_template.jinja":
        (folder / "chat_template.jinja").unlink()
    if own == "list":
        several = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]
        edit(folder / "tokenizer_config.json", chat_template=several)
    (folder / "chat_template.json").write_text('{"chat_template": "of an older format"}')
    names = contents(folder).keys()
    resolve(folder, chat_template=choice)
    assert load_tokenizer(folder).chat_template == TEMPLATES[choice]
    assert contents(folder).keys() - names <= {"chat_template.jinja"}
    assert names - contents(folder).keys() == {"chat_template.json"}
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_of_a_list_of_templates_none_knows_the_date(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    dated = "{% set now = strftime_now %}{{ now('%d %b %Y') }}\n" + CHATML
    several = [{"name": "default", "template": dated}, {"name": "tool_use", "template": dated}]
    edit(folder / "tokenizer_config.json", chat_template=several)
    resolve(folder)
    assert load_tokenizer(folder).chat_template == dict.fromkeys(("default", "tool_use"), FROZEN_CLOCK + dated)


def test_what_a_template_refuses_or_loses_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    silent = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHATML
    (folder / "chat_template.jinja").write_text(silent)
    resolve(folder)
    logged = "given: its chat template loses a system text, loses a system text with earlier turns: rows like that go"
    assert [message[: len(logged)] for message in caplog.messages] == [logged]


LOOPS = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3
# As in DeepSeek-R1's: the generation prompt opens the thinking, which is gone once there is an answer.
THINKING = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}{% else %}<assistant>"
    "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [(LOOPS + CHATML, "runs over 0.5 seconds"), (THINKING, "does not write the answer behind the prompt")],
)
def test_what_cannot_be_used_names_the_setting_which_then_works(
    folder: Path, monkeypatch: pytest.MonkeyPatch, template: str, message: str
) -> None:
    monkeypatch.setattr("tasks.data.encoding.rendering.SECONDS", 0.5)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InputError, match=f"^given: its chat template {message}: fix it or set base.chat_template"):
        resolve(folder)
    resolve(folder, chat_template="plain")
    assert load_tokenizer(folder).chat_template == TEMPLATES["plain"]


# --- Padding


def test_a_tokenizer_without_padding_names_the_cure(folder):
    edit(folder / "tokenizer_config.json", pad_token=None)
    with pytest.raises(InputError, match=r"has no padding token: name one, as in base\.pad_token"):
        resolve(folder)


def test_padding_equal_to_end_of_sequence_names_a_token_that_is_spare(folder):
    edit(folder / "tokenizer_config.json", pad_token="<|im_end|>")
    cure = r"pads with its end-of-sequence token: name one, as in base\.pad_token: '<\|pad\|>'"
    with pytest.raises(InputError, match=cure):
        resolve(folder)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>"])
def test_a_padding_token_that_is_named_is_used_everywhere(folder, token):
    edit(folder / "tokenizer_config.json", pad_token=None)
    resolve(folder, pad_token=token)
    tokenizer = load_tokenizer(folder)
    ids = [
        json.loads((folder / name).read_text())["pad_token_id"] for name in ("config.json", "generation_config.json")
    ]
    assert tokenizer.pad_token == token
    assert ids == [tokenizer.pad_token_id] * 2


def test_a_padding_token_outside_the_vocabulary_is_refused(folder):
    with pytest.raises(InputError, match="<pad> is not in the vocabulary"):
        resolve(folder, pad_token="<pad>")


# --- What only shows when rows are written


def test_an_id_beyond_the_embedding_is_refused_even_where_the_tokens_are_few(folder: Path):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["!"] = 500
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"gives the id 500, but the model's embedding has only 300 rows"):
        resolve(folder)


@pytest.mark.parametrize(
    "content", ['{"version": "1.0"}', '{"model": {"type": "BPE"}, "decoder": {"type": "Odd"}}', "[]"]
)
def test_a_tokenizer_that_raises_whatever_it_likes_is_refused_in_a_sentence(folder: Path, content: str):
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="given: its tokenizer does not load"):
        resolve(folder)


def test_a_setting_that_is_first_read_with_a_row_is_refused(folder: Path):
    edit(folder / "tokenizer_config.json", model_max_length="x")
    resolve(folder)
    with pytest.raises(InputError, match=r"given: its tokenizer writes no rows .*: save it again"):
        try_rows(folder, "given")


def test_a_padding_token_is_written_beside_settings_that_are_infinite(folder: Path):
    edit(folder / "config.json", time_step_limit=[0.0, float("inf")])
    resolve(folder, pad_token="<|im_start|>")
    config = json.loads((folder / "config.json").read_text())
    assert config["time_step_limit"] == [0.0, float("inf")]
    assert config["pad_token_id"] == load_tokenizer(folder).pad_token_id
