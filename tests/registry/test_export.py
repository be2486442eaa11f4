"""A version leaves the project as a folder that plain transformers loads, whole or as an adapter."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.common.errors import InputError
from tasks.common.files import MODELS
from tasks.data.encoding.tokens import encode, load_tokenizer
from tasks.data.records import Message
from tasks.dpo import dpo
from tasks.learning.batches import collate
from tasks.learning.models.loading import load_reward
from tasks.learning.models.outputs import completion_scores
from tasks.registry.export.adapter import factors, write_adapter
from tasks.registry.export.folders import export, export_reward
from tasks.registry.lineage.explain import why
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.conftest import CHATML, MODEL_FILES
from tests.data.test_tokens import GEMMA, LLAMA_2, REWRITING
from tests.families import FAMILIES, causal
from tests.registry.conftest import RANK, change_figures, repro

PROMPT = [Message(role="user", content="please send the order back")]


@pytest.fixture
def promoted(real_models, monkeypatch):
    """The checkout whose champion is a model, to look at only."""
    monkeypatch.chdir(real_models)
    return real_models


def logits(model, tokenizer):
    inputs = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def expected():
    folder = Path("given/ppo")
    return logits(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


@pytest.mark.slow
def test_an_exported_folder_gives_the_logits_of_the_version(promoted, tmp_path):
    exported = export(load_params(), "champion", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(model, AutoTokenizer.from_pretrained(tmp_path / "out")), expected())
    assert (exported["model"], exported["version"], exported["folder"]) == ("trueline-policy", 1, str(tmp_path / "out"))
    assert exported["files"] == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {*MODEL_FILES, "generation_config.json", "README.md"} <= set(exported["files"])


@pytest.mark.slow
def test_exporting_gives_the_bytes_that_were_evaluated_when_models_has_moved_on(real, tmp_path):
    expected = Path("given/ppo/model.safetensors").read_bytes()
    change_figures(content=2)
    shutil.rmtree("given")
    repro()
    assert not Path("models/ppo/model.safetensors").exists()
    export(load_params(), "1", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == expected


def test_the_exported_files_are_no_links_into_the_cache(promoted, tmp_path):
    export(load_params(), "1", tmp_path / "out")
    assert all(path.stat().st_nlink == 1 and not path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_the_folder_has_what_vllm_asks_for(promoted, tmp_path):
    """It chooses the model by config.json's architectures and reads safetensors and a tokenizer, not code of ours."""
    folder = tmp_path / "out"
    export(load_params(), "1", folder)
    config, tokenizer = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert "auto_map" not in config
    assert "auto_map" not in tokenizer
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja", ".md", ".txt"}
    assert set(load_file(folder / "model.safetensors")) == set(load_file("given/ppo/model.safetensors"))
    assert (folder / "tokenizer.json").exists()
    assert AutoTokenizer.from_pretrained(folder).chat_template


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, GEMMA, REWRITING])
def test_a_reward_model_leaves_with_a_card_whose_code_gives_the_pipelines_score(
    promoted, params, tmp_path, capsys, template
):
    folder, answer = tmp_path / "out", "we refund it today"
    exported = export_reward(load_params(), "champion", folder)
    assert (exported["model"], exported["version"]) == ("trueline-reward", 1)
    assert exported["files"] == sorted(path.name for path in folder.iterdir())
    assert {"README.md", *MODEL_FILES} <= set(exported["files"])
    assert (folder / "model.safetensors").read_bytes() == Path("given/reward/model.safetensors").read_bytes()
    (folder / "chat_template.jinja").write_text(template)

    code = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    asked = code.replace("FOLDER", str(folder)).replace("…", PROMPT[0]["content"], 1).replace("…", answer)
    exec(asked, {})  # as a reader of the card would
    reward, row = load_reward(folder, params), encode(load_tokenizer(folder), PROMPT, answer)
    with torch.no_grad():
        [expected] = completion_scores(reward, collate([row], reward.device)).tolist()
    assert float(capsys.readouterr().out) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("made", ["a full folder", "a file"])
def test_a_place_in_use_is_refused_and_left_alone(promoted, tmp_path, made):
    target = tmp_path / "out"
    if made == "a file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    with pytest.raises(InputError, match="out is not an empty folder: name another, or empty it first"):
        export(load_params(), "1", target)
    assert (target if made == "a file" else target / "mine").read_text() == "mine"


@pytest.mark.slow
def test_a_policy_that_learned_from_functions_has_no_reward_model_to_serve_or_export(tracked, tmp_path):
    change_figures(reward={"trained": False})
    repro()
    champion.promote(load_params())
    exported = why(load_params(), "champion")
    assert (exported["version"], exported["reward_card"]) == (1, None)
    with pytest.raises(InputError, match=r"^version champion has no reward model, it learned from functions: "):
        export_reward(load_params(), "champion", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_version_names_those_there_are(promoted, tmp_path):
    with pytest.raises(InputError, match=r"has no 7: choose one of the versions 1 or of the aliases champion \(1\)"):
        export(load_params(), "7", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("as_adapter", "lost"), [(False, "version 1"), (True, "the SFT model of version 1")])
def test_weights_that_the_cache_lacks_are_named_and_nothing_is_left(real, tmp_path, as_adapter, lost):
    weights = Path("given/sft" if as_adapter else "given/ppo", "model.safetensors").read_bytes()
    for path in Path(".dvc/cache").rglob("*"):
        if path.is_file() and path.read_bytes() == weights:
            path.unlink()
    with pytest.raises(
        InputError, match=rf"cache lacks the weights of {lost} \(\w+\.dir\): run dvc fetch --all-commits"
    ):
        export(load_params(), "1", tmp_path / "out", as_adapter=as_adapter)
    assert not any(path.name.startswith(("out", ".out")) for path in tmp_path.iterdir())


def test_base_and_adapter_give_the_logits_of_the_merged_model(promoted, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    exported = export(load_params(), "champion", folder, as_adapter=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    assert (logits(base, tokenizer) - expected()).abs().max() > 0.1  # or there would be nothing to add
    expected_logits, given = expected(), Path("given/sft/model.safetensors").read_bytes()
    monkeypatch.chdir(folder)  # the base is named from there, not by a path on this machine
    for kind in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
        found = logits(kind.from_pretrained("."), tokenizer)
        assert (found - expected_logits).abs().max() < 1e-5
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert (config["r"], config["lora_alpha"], config["bias"]) == (RANK, 16, "none")
    assert {"adapter_model.safetensors", "README.md", "base/model.safetensors"} <= set(exported["files"])
    assert "model.safetensors" not in exported["files"]
    assert (folder / "base/model.safetensors").read_bytes() == given


def test_the_same_version_gives_the_same_adapter(promoted, tmp_path):
    for name in ("one", "two"):
        torch.manual_seed(len(name) + ord(name[0]))
        export(load_params(), "1", tmp_path / name, as_adapter=True)
    one, two = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_a_version_without_adapters_has_none_to_export(tracked, tmp_path):
    champion.promote(load_params())
    with pytest.raises(InputError, match=r"version 1 was trained without adapters \(lora.rank 0\): export it without"):
        export(load_params(), "1", tmp_path / "out", as_adapter=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_taken_out_of_every_family(family, tmp_path):
    merged = tmp_path / "merged"
    causal(FAMILIES[family]).save_pretrained(tmp_path / "base")
    adapted = _with_adapters(causal(FAMILIES[family]))
    adapted.merge_and_unload().save_pretrained(merged)
    write_adapter(merged, tmp_path / "base", tmp_path / "out", rank=2, alpha=6, targets="all-linear")
    _point_to(tmp_path / "base", tmp_path / "out")
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        found = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
        wanted = AutoModelForCausalLM.from_pretrained(merged)(tokens).logits
    assert (found - wanted).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("workspace", "noted_run")
def test_the_adapter_that_a_trainer_merged_comes_out_again(make_params, tmp_path):
    dpo(make_params(lora={"rank": 4}))
    out = tmp_path / "out"
    write_adapter(MODELS / "dpo", MODELS / "sft", out, rank=4, alpha=16, targets="all-linear")
    _point_to(MODELS / "sft", out)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "sft")
    sft, aligned, found = (
        logits(kind.from_pretrained(folder), tokenizer)
        for kind, folder in (
            (AutoModelForCausalLM, MODELS / "sft"),
            (AutoModelForCausalLM, MODELS / "dpo"),
            (AutoPeftModelForCausalLM, out),
        )
    )
    assert (found - aligned).abs().max() < 1e-5
    assert (sft - aligned).abs().max() > 1e-3


@pytest.mark.parametrize("changed", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_difference_that_no_such_adapter_holds_is_refused(changed, tmp_path):
    model = causal(FAMILIES["llama"])
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.get_parameter(changed).add_(torch.rand_like(model.get_parameter(changed)))
    model.save_pretrained(tmp_path / "merged")
    with pytest.raises(InputError, match="differs from the SFT model by more than an adapter of rank 2 can represent"):
        write_adapter(tmp_path / "merged", tmp_path / "base", tmp_path / "out", rank=2, alpha=2, targets="all-linear")


def test_factors_of_a_matrix_of_low_rank_give_it_back():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, 40), (30, 3)))
    for rank in (3, 5, 50):  # more than its own rank, and more than its sides
        found = factors(b @ a, rank)
        assert (found.a.shape, found.b.shape) == ((rank, 40), (30, rank))
        assert (found.b @ found.a - b @ a).abs().max() < 1e-12


def _with_adapters(model):
    import warnings

    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(
            model, LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", init_lora_weights=False)
        )


def _point_to(base, folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(base)}))
