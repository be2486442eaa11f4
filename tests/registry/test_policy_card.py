"""A policy's card says what the version's record says, in a form that the hub's own library reads."""

import copy
import html
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt

from tasks.common.escapes import visible
from tasks.data.checks.validation import FileFigures, SplitCounts, TokenFigures
from tasks.registry.export.policy_card import policy_card
from tasks.registry.promotion import candidate
from tasks.registry.promotion.candidate import model_record
from tasks.settings.params import load_params
from tests.conftest import rows_from
from tests.registry.conftest import change_params, repro, run_again

SOURCE = "infra/example/orders.py"


def interval(value, low, high):
    return {"value": value, "low": low, "high": high}


RECORD: dict[str, Any] = {
    "policy": {"name": "our-policy", "path": "models/dpo", "md5": "aa.dir"},
    "method": "dpo",
    "reward": {"name": "our-reward", "md5": "bb.dir"},
    "sft": {"md5": "cc.dir"},
    "base": {"source": SOURCE, "md5": "dd.dir"},
    "data": {
        "md5": "ee.dir",
        "prepare": {
            kind: {"rows_read": 120, "sources": {SOURCE: {"rows": 120, "license": "apache-2.0"}}}
            for kind in ("demonstrations", "preferences", "prompts")
        },
        "validate": {
            "demonstrations": FileFigures(
                rows=110,
                valid=103,
                quarantined=7,
                splits=SplitCounts(train=80, validation=12, test=11),
                findings={"contamination": {"train": 7}},
                tokens=TokenFigures(mean=66.39, p50=60, p95=110, max=116),
            ).as_json()
        },
    },
    "hub": {},
    "figures": {
        "base": {"family": "llama", "parameters": 166208, "license": "apache-2.0"},
        "reward": {"accuracy": {**interval(0.85, 0.81, 0.88), "pairs": 482}},
        "evaluate": {
            "prompts": 478,
            "confidence": 0.95,
            "candidate": {"reward": 0.9, "length": 25.0, "eos_rate": 1.0, "bleu": None, "rouge_1": 0.8, "rouge_l": 0.6},
            "sft": {"reward": 0.0, "length": 20.0},
            "opponent": {"reward": 0.4},
            "win_rate": {"vs_sft": interval(0.81, 0.78, 0.84), "vs_opponent": interval(0.6, 0.55, 0.65)},
            "length_controlled_win_rate": {"vs_sft": interval(0.75, 0.7, 0.8)},
            "difference": {
                "vs_sft": {
                    "reward": interval(0.9, 0.8, 1.0),
                    "held_out": interval(0.5, 0.4, 0.6),
                    "length": interval(5.0, 4.0, 6.0),
                    "ground_truth": {"order_rule": interval(0.12, 0.08, 0.16)},
                }
            },
            "held_out": {"candidate": 0.5, "sft": 0.0, "vs_opponent": {**interval(0.55, 0.5, 0.6), "wins": 240}},
            "references": None,
            "ground_truth": {"order_rule": {"vs_sft": {**interval(0.7, 0.65, 0.75), "wins": 320}}},
            "llm_judge": {"model": "judge-7b", "vs_opponent": {**interval(0.58, 0.52, 0.64), "wins": 270}},
            "kl": {"mean": 1.78, "standard_error": 0.08},
            "perplexity": {"candidate": 1.4, "sft": 1.3},
        },
    },
    "gate": {"decision": "reject", "reasons": ["It got longer."], "warnings": ["The reward is being gamed."]},
    "opponent": {"name": "champion", "version": 3, "policy": "ff.dir"},
    "params": {"prepare": {kind: {"source": SOURCE} for kind in ("demonstrations", "preferences", "prompts")}},
    "keys": {"sft": "1234", "align": "5678"},
    "git_commit": "0123abcd",
    "git_dirty": "true",
    "lock_file": "4567",
    "seed": "7",
}


def write(known=RECORD, **options):
    return policy_card({"version": 4, "reward_version": 2, "md5": "aa.dir", "record": known}, **options)


def metadata(text) -> Any:
    """What the hub reads."""
    return ModelCard(text).data


def other(**changes):
    return {**copy.deepcopy(RECORD), **changes}


def test_the_metadata_are_those_of_the_hub():
    data = metadata(write()).to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert data["license"] == "apache-2.0"
    assert data["tags"] == ["rlhf", "dpo", "trueline"]
    assert not {"base_model", "datasets"} & data.keys()  # the example is not on the hub


def test_the_model_index_holds_every_figure_with_its_interval():
    [index] = metadata(write()).to_dict()["model-index"]
    assert index["name"] == "our-policy version 4"
    _, results = model_index_to_eval_results([index])
    found = {each.metric_name: (each.metric_value, each.metric_args) for each in results}
    assert found == {
        "Win rate over SFT": (0.81, {"low": 0.78, "high": 0.84, "confidence": 0.95}),
        "Training reward: difference from SFT": (0.9, {"low": 0.8, "high": 1.0, "confidence": 0.95}),
        "Ground-truth reward order_rule: difference from SFT": (0.12, {"low": 0.08, "high": 0.16, "confidence": 0.95}),
        "Held-out reward model: difference from SFT": (0.5, {"low": 0.4, "high": 0.6, "confidence": 0.95}),
        "Length, tokens: difference from SFT": (5.0, {"low": 4.0, "high": 6.0, "confidence": 0.95}),
        "Win rate over SFT at equal length": (0.75, {"low": 0.7, "high": 0.8, "confidence": 0.95}),
        "Win rate over SFT, by the ground-truth reward order_rule": (
            0.7,
            {"low": 0.65, "high": 0.75, "confidence": 0.95},
        ),
        "Win rate over champion version 3": (0.6, {"low": 0.55, "high": 0.65, "confidence": 0.95}),
        "Win rate over champion version 3, by the held-out reward model": (
            0.55,
            {"low": 0.5, "high": 0.6, "confidence": 0.95},
        ),
        "Win rate over champion version 3, by the LLM judge judge-7b": (
            0.58,
            {"low": 0.52, "high": 0.64, "confidence": 0.95},
        ),
        "KL(policy || SFT), nats per answer": (1.78, {"standard_error": 0.08}),
        "Training reward": (0.9, None),
        "Length, tokens": (25.0, None),
        "Ended by EOS": (1.0, None),
        "ROUGE-1": (0.8, None),  # no BLEU: it could not be computed
        "ROUGE-L": (0.6, None),
        "Held-out reward model": (0.5, None),
        "Perplexity of the demonstrated answers": (1.4, None),
    }
    assert {(each.dataset_type, each.dataset_split) for each in results} == {(SOURCE, "test")}


@pytest.mark.parametrize(
    "text",
    [
        "# our-policy version 4",
        "(llama, 166,208 parameters), aligned with preference data by DPO",
        "| reward model, version 2 of our-reward | `bb.dir` |",
        "| SFT model | `cc.dir` |",
        "| base model | `dd.dir` | `infra/example/orders.py` |",
        "| demonstrations | `infra/example/orders.py` | 120 | 103 | 7 | 80 | 12 | 11 |",
        "Findings in demonstrations: contamination (train 7).",
        "| Win rate over SFT | 0.810 | [0.780, 0.840] |",
        "| Training reward | 0.900 | 0.000 | 0.400 |",
        "| BLEU | — | — | — |",
        "| Held-out reward model | 0.500 | 0.000 | — |",
        "| Perplexity of the demonstrated answers | 1.400 | 1.300 | — |",
        "The opponent is champion version 3.",
        "Decision: **reject**.\n\n- It got longer.\n- Warning: The reward is being gamed.\n",
        "The reward model orders 0.850 [0.810, 0.880] of 482 held-out pairs as people did.",
        "The policy is 1.780 nats per answer away from SFT",
        "Answers have 1.25 times the length of those of SFT, and 1.000 of them end by themselves",  # 25 / 20
        "| git commit | 0123abcd, with uncommitted changes |",
        "| sha256 of requirements.lock | 4567 |",
        "| seed | 7 |",
        "| device | not recorded |",
        "| key of `align` | `5678` |",
    ],
)
def test_the_text_shows_what_the_record_holds(text):
    assert text in write()


def test_an_approval_is_named_and_no_other():
    assert "Approved" not in write()
    text = write(other(approval={"by": "Ada", "reason": "I read fifty answers."}))
    assert "Decision: **reject**.\n\nApproved by Ada: I read fifty answers.\n" in text


def test_a_licence_is_given_where_all_sources_state_the_same():
    known = other()
    for stated in ({"rows": 9}, {"rows": 9, "license": "mit"}):
        known["data"]["prepare"]["demonstrations"]["sources"] = {SOURCE: stated}
        assert metadata(write(known)).license is None
    known["data"]["prepare"]["demonstrations"]["sources"] = {
        "a.py": {"rows": 9, "license": "apache-2.0"},
        "b.jsonl": {"excluded": True},
    }
    assert metadata(write(known)).license == "apache-2.0"


def test_sources_on_the_hub_are_named_there():
    known = other(
        base={"source": "base.yaml", "md5": "dd.dir"},
        params={"prepare": {"demonstrations": {"source": "d.yaml"}, "prompts": {"source": "p.yaml"}}},
        figures=RECORD["figures"] | {"base": {}},
        hub={
            "base.yaml": {"hub": "org/model", "revision": "a" * 40},
            "d.yaml": {"hub": "org/chats", "revision": "b" * 40},
            "p.yaml": {"hub": "org/asked", "revision": "c" * 40},
        },
    )
    text = write(known)
    read = metadata(text)
    assert (read.base_model, read.datasets, read.license) == ("org/model", ["org/asked", "org/chats"], None)
    assert {(each.dataset_type, each.dataset_revision) for each in read.eval_results} == {("org/asked", "c" * 40)}
    assert f"[org/model](https://huggingface.co/org/model) at {'a' * 40}" in text
    assert "License: not recorded. The terms of the base model and of the data apply." in text


def test_an_adapter_says_what_it_stands_on():
    text = write(as_adapter=True)
    assert metadata(text).library_name == "peft"
    assert "a LoRA adapter on the SFT model in `base/` (DVC hash `cc.dir`)" in text
    assert "vllm serve FOLDER/base --enable-lora" in text


def test_what_intervals_are_over_is_stated_where_prompts_are_turns():
    known = other()
    assert "In brackets: paired bootstrap over prompts, confidence" in write(known)
    known["figures"]["evaluate"]["conversations"] = 40
    assert "paired bootstrap over the 40 conversations that the prompts are turns of, confidence" in write(known)


def test_a_record_of_an_earlier_release_still_gets_a_card():
    known = other()
    del known["figures"], known["hub"]
    text = write(known)
    assert "The record of this version holds no figures" in text
    assert "model-index" not in metadata(text).to_dict()


NAME = "x</h1><script>alert(1)</script>[a](javascript:b)|`c`**d**\x1b[31m\u202e\n---\n# e"
SHOWN = "x</h1><script>alert(1)</script>[a](javascript:b)|`c`**d**\\x1b[31m\\u202e"


def hostile(known):
    """The record with a name that would act wherever a card tells a text."""
    evaluation = known["figures"]["evaluate"] | {
        "llm_judge": {"model": NAME, "vs_opponent": interval(0.58, 0.52, 0.64)}
    }
    return known | {
        "policy": known["policy"] | {"name": NAME},
        "reward": known["reward"] | {"name": NAME},
        "base": known["base"] | {"source": NAME},
        "params": {"prepare": {"demonstrations": {"source": "on the hub"}, "preferences": {"source": NAME}}},
        "hub": {"on the hub": {"hub": NAME, "revision": NAME}},
        "figures": known["figures"] | {"evaluate": evaluation},
        "gate": {"decision": "reject", "reasons": [f"Worse in {NAME}."], "warnings": [NAME]},
        "approval": {"by": NAME, "reason": NAME},
        "git_commit": NAME,
        "keys": {NAME: NAME},
    }


@pytest.mark.parametrize("options", [{}, {"as_adapter": True}])
def test_a_name_is_shown_and_does_nothing(options):
    text = write(hostile(copy.deepcopy(RECORD)), **options)
    assert visible(text) == text
    assert metadata(text).to_dict()["model-index"][0]["name"] == f"{NAME} version 4"  # the whole front is one block
    page = MarkdownIt("commonmark").enable("table").render(text.split("\n---\n", 1)[1])
    links = re.findall('href="([^"]*)"', page)
    assert links == [f"https://huggingface.co/datasets/{quote(NAME)}"]
    elements = set(re.findall(r"<(\w+)", page))
    tables = {"table", "thead", "tbody", "tr", "th", "td"}
    assert elements <= {"h1", "h2", "p", "ul", "li", "code", "pre", "strong", "a"} | tables
    assert page.count("<strong>") == 1  # Decision: **reject**
    assert html.unescape(page).count(SHOWN) >= 10


def test_the_same_record_gives_the_same_bytes():
    assert write(other()) == write(other())


@pytest.mark.slow
def test_the_record_names_the_repository_behind_a_pointer_that_was_read(tracked):
    pointer = Path("base.yaml")
    pointer.write_text(f"hub: org/model\nrevision: {'a' * 40}\n")
    change_params(base={"source": "base.yaml"})
    pipeline = yaml.safe_load(Path("dvc.yaml").read_text())
    pipeline["stages"]["base"]["deps"].append("base.yaml")
    Path("dvc.yaml").write_text(yaml.safe_dump(pipeline))
    repro("base")
    assert model_record(load_params())["hub"] == {"base.yaml": {"hub": "org/model", "revision": "a" * 40}}
    pointer.write_text(f"hub: org/other\nrevision: {'b' * 40}\n")
    assert model_record(load_params())["hub"] == {}  # nobody has read that one


@pytest.mark.slow
def test_a_record_has_no_entries_by_annotator_and_by_category(tracked):
    accuracy = {"value": 0.8, "low": 0.7, "high": 0.9, "pairs": 9}
    run_again(
        reward={"accuracy": accuracy, "accuracy_by_annotator": {"ada": accuracy}},
        evaluate={"win_rate": {}, "categories": {"law": {"prompts": 9}}},
    )
    figures = model_record(load_params())["figures"]
    assert (figures["reward"], figures["evaluate"]) == ({"accuracy": accuracy}, {"win_rate": {}})


def test_the_record_names_the_repositories_that_prepare_has_read(tracked, monkeypatch):
    read = {
        "pairs/a.yaml": {"rows": 9, "sha256": "01", "hub": "org/pairs", "revision": "c" * 40},
        "pairs/b.jsonl": {"rows": 9, "sha256": "02"},
    }
    asked = {"p.yaml": {"rows": 9, "sha256": "03", "hub": "org/asked", "revision": "d" * 40}}
    prepared = {"preferences": {"sources": read}, "prompts": {"sources": asked}}
    monkeypatch.setattr(candidate, "locked_json", lambda stage, path: prepared if stage == "prepare" else {})
    elsewhere = Path("/elsewhere/p.yaml")  # outputs do not say where
    kinds = {"demonstrations": "d.jsonl", "preferences": "pairs", "ratings": "t.jsonl", "prompts": str(elsewhere)}
    change_params(prepare={kind: rows_from(kind, name) for kind, name in kinds.items()})
    assert model_record(load_params())["hub"] == {
        "pairs/a.yaml": {"hub": "org/pairs", "revision": "c" * 40},
        "p.yaml": {"hub": "org/asked", "revision": "d" * 40},
    }
