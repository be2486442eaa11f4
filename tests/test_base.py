import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tasks.base import base
from tasks.common.errors import InputError
from tasks.common.python_files import load_function
from tasks.data.base_model.from_hub import read_pointer
from tasks.data.base_model.from_scratch import make_scratch
from tasks.data.encoding.tokens import encode, load_tokenizer
from tasks.settings.params import Params, load_params
from tests import conftest
from tests.conftest import ROOT

EXAMPLE = ROOT / conftest.EXAMPLE
STORIES = ROOT.parent / "shared/models/stories260k"
BASE = Path("models/base")
SHA = "0123456789abcdef0123456789abcdef01234567"

needs_stories = pytest.mark.skipif(not STORIES.exists(), reason="../shared/models/stories260k is absent")


@pytest.fixture(scope="module")
def settings() -> Params:
    params = load_params(ROOT / "params.yaml")
    shape = params.base.scratch.model_copy(update={"vocabulary": 400, "hidden_size": 16, "layers": 1, "heads": 2})
    return params.model_copy(update={"base": params.base.model_copy(update={"source": str(EXAMPLE), "scratch": shape})})


@pytest.fixture(scope="module")
def made(settings: Params, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "model"
    make_scratch(EXAMPLE, settings.base.scratch, 7, folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder of one's own to spoil; the test runs beside it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "given")
    return tmp_path / "given"


def run(settings: Params, source: Path | str, **changes) -> None:
    base(settings.model_copy(update={"base": settings.base.model_copy(update={"source": str(source), **changes})}))


def edit(path: Path, **changes) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


# --- From scratch


@pytest.mark.slow
def test_from_scratch_the_same_seed_gives_the_same_bytes_in_another_process(settings, made, tmp_path):
    code = (
        "import sys; from pathlib import Path; from tasks.data.base_model.from_scratch import make_scratch; "
        "from tasks.settings.params import Scratch;"
        "make_scratch(Path(sys.argv[4]), Scratch.model_validate_json(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))"
    )
    shape = settings.base.scratch.model_dump_json()
    command = [sys.executable, "-c", code, shape, "7", str(tmp_path / "again"), str(EXAMPLE)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": "5"})
    assert contents(tmp_path / "again") == contents(made)


def test_another_seed_gives_other_weights_and_leaves_the_callers_random_numbers_alone(settings, made, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    make_scratch(EXAMPLE, settings.base.scratch, 8, tmp_path / "other")
    assert torch.equal(torch.rand(3), expected)
    ours, theirs = (load_file(path / "model.safetensors") for path in (made, tmp_path / "other"))
    assert not torch.equal(ours["model.embed_tokens.weight"], theirs["model.embed_tokens.weight"])


def test_from_scratch_the_stage_writes_a_model_that_answers_and_its_metrics(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base(settings)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE), load_tokenizer(BASE)
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id == model.config.eos_token_id
    # Embedding and head 400*16 each; attention 4*16*16; feed-forward 3*16*48 (48: 16*8/3 rounded up to 16s);
    # 3 norms of 16.
    expected = {"source": "scratch", "family": "llama", "parameters": 2 * 400 * 16 + 1024 + 2304 + 48}
    assert json.loads(Path("metrics/base.json").read_text()) == expected | {
        "vocabulary": 400,
        "context": settings.base.scratch.context,
        "license": "apache-2.0",  # as the file states it
    }
    assert sorted(path.name for path in Path().iterdir()) == ["metrics", "models"]


def test_numbers_are_split_into_digits_and_text_comes_back(settings, made):
    tokenizer = load_tokenizer(made)
    assert tokenizer.tokenize("order #4821")[-4:] == ["4", "8", "2", "1"]
    text = "Zoë wrote:\n  «4821»  twice 😀"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_rows_of_the_example_are_short_and_end_once(settings, made):
    tokenizer = load_tokenizer(made)
    for row in load_function(EXAMPLE, "demonstrations")(7, {"rows": 100, "faulty": 0.5}):
        encoded = encode(tokenizer, [{"role": "user", "content": row["prompt"]}], row["response"])
        assert encoded.length < 160
        assert encoded.completion.count(tokenizer.eos_token_id) == 1


def test_a_vocabulary_larger_than_the_text_gives_is_refused(settings, tmp_path):
    with pytest.raises(InputError, match=r"vocabulary is 9000, but .* gives only .* lower it"):
        make_scratch(EXAMPLE, settings.base.scratch.model_copy(update={"vocabulary": 9000}), 7, tmp_path / "model")


# --- From a folder


def test_a_folder_is_copied_byte_by_byte_with_only_what_is_needed(settings, folder):
    (folder / "README.md").write_text("hello")
    (folder / "pytorch_model.bin").write_bytes(b"a second copy")
    run(settings, folder)
    wanted = {name: text for name, text in contents(folder).items() if name not in ("README.md", "pytorch_model.bin")}
    assert contents(BASE) == wanted
    assert json.loads(Path("metrics/base.json").read_text())["source"] == "folder"


def test_sharded_weights_are_copied_and_counted(settings, folder):
    before = load_file(folder / "model.safetensors")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()
    run(settings, folder)
    assert len(list(BASE.glob("model-*.safetensors"))) > 1
    count = json.loads(Path("metrics/base.json").read_text())["parameters"]
    assert count == sum(tensor.numel() for tensor in before.values())


def test_failing_leaves_the_earlier_model_as_it_was(settings, folder):
    run(settings, folder)
    before = contents(BASE)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError):
        run(settings, folder)
    assert contents(BASE) == before
    assert [path.name for path in BASE.parent.iterdir()] == ["base"]


def test_a_missing_folder_is_refused(settings, folder):
    with pytest.raises(InputError, match="nowhere is no folder: give"):
        run(settings, "nowhere")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        (["config.json"], "has no config.json"),
        (["tokenizer.json"], "has no tokenizer"),
        (["model.safetensors"], "no safetensors weights: convert to safetensors"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused(settings, folder, missing, sentence):
    for name in missing:
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(InputError, match=sentence):
        run(settings, folder)


def test_a_missing_shard_is_named(settings, folder):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(InputError, match=f"lacks {shard.name}"):
        run(settings, folder)


def test_cut_off_weights_are_refused(settings, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        run(settings, folder)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is no JSON object"),
        ('{"model_type": "unheard"}', "transformers cannot use config"),
        ('{"model_type": "llama", "auto_map": {"AutoModel": "code.Model"}}', "needs code of its own"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(settings, folder, text, sentence):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        run(settings, folder)


def test_a_damaged_tokenizer_is_refused(settings, folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(InputError, match="tokenizer does not load"):
        run(settings, folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(settings, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["newword"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="401 tokens, but the model's embedding only 400"):
        run(settings, folder)


def test_a_tokenizer_without_end_of_sequence_is_refused(settings, folder):
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(InputError, match="no end-of-sequence token"):
        run(settings, folder)


# --- The hub


def pointer(text: str) -> Path:
    Path("model.yaml").write_text(text)
    return Path("model.yaml")


def test_a_hub_model_is_fetched_at_its_revision_with_safe_files_only(settings, folder, monkeypatch):
    asked: dict[str, Any] = {}

    def snapshot(repo_id, **options):  # stands in for the network: the files it would have brought
        asked.update(options, repo_id=repo_id)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    run(settings, pointer(f"hub: some/model\nrevision: {SHA}\n"))
    assert (asked["repo_id"], asked["revision"]) == ("some/model", SHA)
    assert {"*.safetensors", "adapter_config.json"} <= set(asked["allow_patterns"])
    assert {"*/*.safetensors", "consolidated*.safetensors"} <= set(asked["ignore_patterns"])
    assert not any(name.endswith((".bin", ".py", ".pt")) or name == "*" for name in asked["allow_patterns"])
    assert contents(BASE) == contents(folder)
    assert json.loads(Path("metrics/base.json").read_text())["source"] == "hub"


def test_offline_a_model_that_is_not_cached_is_the_users_to_fix(settings, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"some/model at .* is not in the local cache"):
        run(settings, pointer(f"hub: some/model\nrevision: {SHA}\n"))


def test_a_hub_out_of_reach_is_a_passing_fault(settings, folder, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(*_args, **_options):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        run(settings, pointer(f"hub: some/model\nrevision: {SHA}\n"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"revision: {SHA}",
        "hub: some/model\nrevision: main",
        f"hub: model\nrevision: {SHA}",
        f"hub: a/b\nrevision: {SHA}\nx: 1",
    ],
)
def test_a_pointer_that_pins_nothing_is_refused(folder, text):
    with pytest.raises(InputError, match="full commit hash of 40 hexadecimal digits"):
        read_pointer(pointer(text))


@pytest.mark.parametrize("text", ["{", "hub: &a [*a]", f"hub: {'[' * 3000}", "revision: 0o12"])
def test_a_pointer_that_is_no_yaml_or_bounds_nothing_is_refused(folder, text):
    with pytest.raises(InputError, match=r"^model\.yaml") as refused:
        read_pointer(pointer(text))
    assert len(str(refused.value)) < 300


def test_a_missing_pointer_is_refused(settings, folder):
    with pytest.raises(InputError, match=r"absent\.yaml does not exist"):
        run(settings, "absent.yaml")


# --- A real model nobody here made


@needs_stories
def test_a_real_base_model_needs_a_template_and_then_works(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="has no chat template"):
        run(settings, STORIES)
    with pytest.raises(InputError, match=r"set base.chat_template: plain"):
        run(settings, STORIES, chat_template="chatml")
    run(settings, STORIES, chat_template="plain")
    assert json.loads(Path("metrics/base.json").read_text())["parameters"] == 260_032
    encoded = encode(load_tokenizer(BASE), [{"role": "user", "content": "Tell a story."}], "Once upon a time.")
    ids = torch.tensor([encoded.prompt + encoded.completion])
    assert torch.isfinite(AutoModelForCausalLM.from_pretrained(BASE)(ids).logits).all()
