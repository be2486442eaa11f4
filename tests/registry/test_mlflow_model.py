"""A version in the registry loads by MLflow's own loaders, and its weights lie on the disk once."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from fastapi.testclient import TestClient
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.common.errors import InputError
from tasks.data.encoding.tokens import encode, load_tokenizer
from tasks.data.records import Message
from tasks.learning.batches import collate
from tasks.learning.models.loading import load_reward
from tasks.learning.models.outputs import completion_scores
from tasks.registry.dvc_outputs import stages
from tasks.registry.export import mlflow_model
from tasks.registry.export.folders import export_reward
from tasks.registry.export.trueline_model import HASHES, _load_pyfunc, answered, check_files, conversations, token_ids
from tasks.registry.lineage import explain, sync
from tasks.registry.mlflow_runs.store import open_store
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.conftest import CHATML, make_tokenizer
from tests.data.test_tokens import GEMMA, LLAMA_2, REWRITING
from tests.registry.conftest import change_params, run_again

CHAMPION = "models:/trueline-policy@champion"
REWARD = "models:/trueline-reward@champion"
ASKED = [Message(role="user", content="please send the order back")]
ANSWERS = ["we refund it today", "no"]
# MLflow's loaders: notes on a class of their own, and on the transformers they were tested with.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")


@pytest.fixture
def mlflow_here(real_models, monkeypatch):
    """MLflow as a person sets it up: by its variable alone, in a folder that is no checkout."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{real_models}/mlflow.db")
    elsewhere = real_models.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    monkeypatch.chdir(elsewhere)
    return real_models


def artifacts(name="trueline-policy", version="1"):
    """The folder of a version's logged model."""
    client = open_store("trueline").client
    model_id = client.get_model_version(name, version).tags["model_id"]
    return Path(client.get_logged_model(model_id).artifact_location.removeprefix("file://"))


def weights(folder):
    return folder / "model/model.safetensors"


def greedy(folder):
    """What the model answers, by transformers alone."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def with_answer(answer):
    return [*ASKED, {"role": "assistant", "content": answer}]


def test_pyfunc_answers_through_the_chat_template_as_the_evaluation_sampled(mlflow_here):
    model = mlflow.pyfunc.load_model(CHAMPION)
    expected = greedy(mlflow_here / "given/ppo")
    text = ASKED[0]["content"]
    assert expected
    for asked in (text, ASKED, {"messages": ASKED}, pd.DataFrame({"prompt": [text]})):
        assert model.predict(asked) == [expected]
    assert len(model.predict([text, ASKED])) == 2
    short = mlflow.pyfunc.load_model(CHAMPION, model_config={"max_new_tokens": 1})
    assert len(short.predict(text)[0]) < len(expected)


def test_mlflows_own_server_answers(mlflow_here):
    """`mlflow models serve`, without its process."""
    from mlflow.pyfunc import scoring_server  # its import warns

    text, expected = ASKED[0]["content"], greedy(mlflow_here / "given/ppo")
    client = TestClient(scoring_server.init(mlflow.pyfunc.load_model(CHAMPION)))
    for asked in ({"inputs": [text]}, {"dataframe_records": [{"prompt": text}]}):
        answer = client.post("/invocations", json=asked)
        assert (answer.status_code, answer.json()) == (200, {"predictions": [expected]})
    assert client.post("/invocations", json={"messages": ASKED}).json() == [expected]


def test_transformers_gives_the_models_logits(mlflow_here):
    parts = mlflow.transformers.load_model(CHAMPION, return_type="components")
    model = AutoModelForCausalLM.from_pretrained(mlflow_here / "given/ppo")
    tokens = torch.arange(3, 20)[None]
    assert torch.equal(parts["model"](tokens).logits, model(tokens).logits)
    assert parts["tokenizer"].chat_template
    answer = mlflow.transformers.load_model("models:/trueline-policy/1")(ASKED, max_new_tokens=8, do_sample=False)
    assert answer[0]["generated_text"][-1]["content"].strip() == greedy(mlflow_here / "given/ppo")


def test_pyfunc_gives_the_scores_that_the_pipeline_computes(mlflow_here, params):
    folder, text = mlflow_here / "given/reward", ASKED[0]["content"]
    reward, tokenizer = load_reward(folder, params), load_tokenizer(folder)
    rows = [encode(tokenizer, ASKED, answer) for answer in ANSWERS]
    with torch.no_grad():
        expected = completion_scores(reward, collate(rows, reward.device)).tolist()
    assert abs(expected[0] - expected[1]) > 0.01  # or one could stand for the other
    model = mlflow.pyfunc.load_model(REWARD)
    table = {"prompt": [text, text], "answer": ANSWERS}
    rows_of_table = [{"prompt": text, "answer": answer} for answer in ANSWERS]
    messages = [with_answer(answer) for answer in ANSWERS]
    for asked in (table, rows_of_table, pd.DataFrame(table), messages, {"messages": messages}):
        assert model.predict(asked) == pytest.approx(expected, abs=1e-5)
    assert model.predict({"prompt": ASKED, "answer": ANSWERS[1]}) == pytest.approx(expected[1:], abs=1e-5)


def test_transformers_gives_raw_scores(mlflow_here):
    classify = mlflow.transformers.load_model("models:/trueline-reward/1")
    text = classify.tokenizer.apply_chat_template(with_answer(ANSWERS[0]), tokenize=False).strip()
    assert text.endswith(ANSWERS[0] + classify.tokenizer.eos_token)
    [raw] = classify(text, function_to_apply="none", add_special_tokens=False)
    [score] = mlflow.pyfunc.load_model(REWARD).predict(with_answer(ANSWERS[0]))
    assert (raw["score"] - 0.5) * 2.0 == pytest.approx(score, abs=1e-5)  # the bias and the gain in its config


@pytest.mark.parametrize("template", [CHATML, LLAMA_2, GEMMA, REWRITING])
def test_an_answer_to_be_scored_has_the_tokens_it_had_in_training(template):
    tokenizer = make_tokenizer(template)
    for answer in (*ANSWERS, "", " now ", "thanks\n", ASKED[0]["content"], "grüße"):
        row = encode(tokenizer, ASKED, answer)
        assert token_ids(tokenizer, with_answer(answer)) == (row.prompt, row.completion)


def test_an_answer_that_holds_the_end_of_sequence_token_gets_no_score():
    tokenizer, answer = make_tokenizer(REWRITING), "yes<|im_end|>no"
    with pytest.raises(InputError, match="control token"):
        encode(tokenizer, ASKED, answer)
    with pytest.raises(ValueError, match=r"the answer holds the control token <\|im_end\|>"):
        token_ids(tokenizer, with_answer(answer))


def test_what_travels_with_the_model_imports_nothing_of_the_project(mlflow_here):
    code, of_reward = mlflow_here.glob("mlruns/models/*/artifacts/code/trueline_model.py")
    assert code.read_bytes() == of_reward.read_bytes()
    nodes = list(ast.walk(ast.parse(code.read_text())))
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {
        "collections.abc",
        "hashlib",
        "io",
        "json",
        "pathlib",
        "re",
        "statistics",
        "typing",
        "torch",
        "transformers",
    }


def test_the_weights_lie_on_the_disk_once(real_models, monkeypatch):
    monkeypatch.chdir(real_models)
    cached = {path.stat().st_ino for path in Path(".dvc/cache").rglob("*") if path.is_file()}
    for name in ("trueline-policy", "trueline-reward"):
        linked = weights(artifacts(name)).stat()
        assert linked.st_nlink == 2
        assert linked.st_ino in cached


def test_the_card_lies_beside_the_model_and_why_points_there(real_models, monkeypatch):
    monkeypatch.chdir(real_models)
    card = explain.why(load_params(), "champion")["card"]
    text = Path(card).read_text(encoding="utf-8")
    data: Any = ModelCard(text).data
    [win_rate] = [each for each in data.eval_results if each.metric_type == "win_rate"]
    assert (win_rate.metric_value, win_rate.metric_args["low"]) == (0.8, 0.75)
    assert explain.why(load_params(), "champion")["policy"]["md5"] in text


def test_the_card_of_the_reward_model_lies_beside_it_and_why_points_there(real_models, monkeypatch):
    monkeypatch.chdir(real_models)
    card = explain.why(load_params(), "champion")["reward_card"]
    data: Any = ModelCard(Path(card).read_text(encoding="utf-8")).data
    assert data.pipeline_tag == "text-classification"
    assert [each.metric_value for each in data.eval_results] == [0.8]


@pytest.mark.slow
def test_a_reward_model_is_named_by_the_version_it_was_registered_with(tracked):
    champion.promote(load_params())
    card = artifacts("trueline-reward") / "README.md"
    first = card.read_text()
    change_params(ppo={"clip": 0.1})
    run_again()
    registered = champion.register(load_params())
    assert (registered["version"], registered["reward_version"]) == (2, 1)
    assert card.read_text() == first
    assert "record of policy version 1," in first


@pytest.mark.slow
def test_a_reward_model_registered_under_another_name_is_left_alone(tracked):
    champion.promote(load_params())
    change_params(registry={"reward": "renamed"})
    sync.sync(load_params())
    assert explain.why(load_params(), "champion")["reward_card"] is None


@pytest.mark.slow
def test_a_reward_model_under_a_new_name_is_not_taken_for_one_of_the_same_number(tracked, tmp_path):
    champion.promote(load_params())
    change_params(registry={"reward": "renamed"})
    run_again(content=1)
    registered = champion.register(load_params())
    assert (registered["version"], registered["reward_version"]) == (2, 1)
    assert "record of policy version 2," in (artifacts("renamed") / "README.md").read_text()
    export_reward(load_params(), "2", tmp_path / "out")
    assert (tmp_path / "out/content.txt").read_text() == Path("models/reward/content.txt").read_text()


@pytest.mark.slow
def test_the_card_of_a_challenger_follows_the_newest_gate(tracked):
    champion.register(load_params())
    assert "All is well." in (artifacts() / "README.md").read_text()
    run_again(gate={"decision": "reject", "reasons": ["Too far."]}, evaluate={"other": 2})
    assert champion.register(load_params())["version"] == 1
    assert "Too far." in (artifacts() / "README.md").read_text()


@pytest.mark.slow
def test_a_server_gets_the_weights_of_a_champion_only(tracked, monkeypatch):
    monkeypatch.setattr(mlflow_model, "local_folder", lambda _: None)  # as where artifacts are reached over a network
    champion.register(load_params())
    assert [path.name for path in artifacts().iterdir()] == ["README.md"]
    champion.promote(load_params())
    assert (artifacts() / "MLmodel").exists()
    for name, model in (("trueline-policy", "ppo"), ("trueline-reward", "reward")):
        uploaded = artifacts(name) / "model/content.txt"
        assert uploaded.read_text() == Path("models", model, "content.txt").read_text()


@pytest.mark.slow
def test_weights_that_are_away_do_not_stop_the_registry_and_come_with_the_next_sync(tracked, caplog):
    md5 = stages.output_hash("align", Path("models/ppo")) or ""
    cached = Path(".dvc/cache/files/md5", md5[:2], md5[2:])
    cached.rename("away")
    assert champion.register(load_params())["version"] == 1
    assert "MLflow cannot load trueline-policy version 1: DVC's cache lacks it: run dvc fetch" in caplog.text
    assert [path.name for path in artifacts().iterdir()] == ["README.md"]
    Path("away").rename(cached)
    sync.sync(load_params())
    assert (artifacts() / "model/content.txt").exists()


@pytest.mark.slow
def test_pyfunc_loads_no_file_that_was_not_registered_and_the_cure_writes_it_again(tracked):
    champion.promote(load_params())
    folder = artifacts()
    model, recorded = folder / "model", json.loads((folder / HASHES).read_text())
    file = model / "content.txt"
    expected = file.read_bytes()
    check_files(model, recorded)
    file.chmod(0o644)
    file.write_bytes(expected[:-1] + b"?")  # the link's object in DVC's cache is another, too
    with pytest.raises(ValueError, match=r"content\.txt is not the file that was registered: .* or delete") as seen:
        _load_pyfunc(str(folder))
    assert f"delete {folder} and run trueline sync" in str(seen.value)
    shutil.rmtree(folder)
    sync.sync(load_params())
    assert file.read_bytes() == expected
    check_files(model, recorded)
    for strange in (model / "added.txt", file):
        strange.unlink() if strange.exists() else strange.touch()
        with pytest.raises(ValueError, match=f"{strange.name} is not the file"):
            check_files(model, recorded)
        if strange != file:
            strange.unlink()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("one", [["one"]]),
        (["one", "two"], [["one"], ["two"]]),
        (ASKED, [[ASKED[0]["content"]]]),
        ([ASKED, "two"], [[ASKED[0]["content"]], ["two"]]),
        ({"prompt": "one"}, [["one"]]),
        ({"messages": ASKED}, [[ASKED[0]["content"]]]),
        (pd.DataFrame({"messages": [ASKED, ASKED]}), [[ASKED[0]["content"]]] * 2),
        (np.array(["one", "two"]), [["one"], ["two"]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_prompts_and_messages_become_conversations(asked, expected):
    assert [[message["content"] for message in each] for each in conversations(asked)] == expected


@pytest.mark.parametrize("asked", [None, [], 3, {"text": "one"}, [["one"]], [{"role": "user"}]])
def test_what_is_neither_prompt_nor_messages_is_refused(asked):
    with pytest.raises(ValueError, match="messages of a conversation"):
        conversations(asked)


TEXT = ASKED[0]["content"]


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": TEXT, "answer": "no"},
        {"prompt": ASKED, "answer": "no"},
        [{"prompt": TEXT, "answer": "no"}],
        {"prompt": [TEXT], "answer": ["no"]},
        with_answer("no"),
        [with_answer("no")],
        {"messages": with_answer("no")},
        pd.DataFrame({"prompt": [TEXT], "answer": ["no"]}),
        pd.DataFrame({"messages": [with_answer("no")]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_prompts_with_answers_and_messages_become_answered_conversations(asked):
    assert answered(asked) == [with_answer("no")]


@pytest.mark.parametrize("asked", ["one", ASKED, {"prompt": "one"}, [{"role": "assistant", "content": "no"}]])
def test_what_has_no_answer_gets_no_score(asked):
    with pytest.raises(ValueError, match="give a prompt and an answer"):
        answered(asked)


def test_prompts_and_answers_must_be_as_many():
    with pytest.raises(ValueError, match="shorter"):
        answered({"prompt": [TEXT, TEXT], "answer": ["no"]})
