"""trueline collect and trueline label answers: what they ask for, print and refuse."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from flows.feedback import ai_feedback
from flows.feedback.ai_feedback import Named
from flows.feedback.rounds import Asked
from tasks.common.files import MODELS
from tasks.feedback.collect import Policy, Sampling
from tasks.feedback.label import Thresholds
from tests.cli.conftest import returning

LABELS: dict[str, Any] = {
    "folder": "round", "annotator": "reward:reward_model", "agreement": {"pairs": 96, "share": 0.8125},
    "counts": {"prompts": 1200, "unusable": 31, "single": 9, "ties": 4, "small_gaps": 2, "pairs": 1185},
}  # fmt: skip


def test_collect_names_the_policy_by_its_hash(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def collect(folder: Path, policy: Policy, sampling: Sampling, prompts: int | None, _params: Any) -> dict[str, Any]:
        asked.append((folder, policy, sampling, prompts))
        return {"policy": policy._asdict(), "prompts": {"count": 1200}, "sampling": sampling._asdict()}

    monkeypatch.setattr(ai_feedback, "collect", collect)
    monkeypatch.setattr(ai_feedback, "recorded_output", lambda stage, _path: f"hash of {stage}")
    (MODELS / "sft").mkdir(parents=True)
    (MODELS / "dpo").mkdir()

    out = trueline("collect", "round", "--policy", "sft", "--answers", "8", "--seed", "3")[1]
    trueline("collect", "again", "--policy", "dpo", "--prompts", "5")

    assert out.splitlines() == [
        "round: 8 answers of sft to each of 1,200 prompts.",
        "Then: trueline label answers round",
    ]
    assert asked == [
        (Path("round"), Policy("sft", None, "hash of sft", MODELS / "sft"), Sampling(8, 1.0, 64, 3), None),
        (Path("again"), Policy("dpo", None, "hash of dpo", MODELS / "dpo"), Sampling(4, 1.0, 64, 7), 5),
    ]


def test_a_version_is_fetched_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"version": 3, "policy": {"md5": "abc.dir"}}
    monkeypatch.setattr("tasks.registry.lineage.explain.why", returning(known))
    monkeypatch.setattr(ai_feedback, "version_folder", returning(Path("fetched")))
    params: Any = None
    assert ai_feedback._policy("champion", params) == Policy("champion", 3, "abc.dir", Path("fetched"))


def test_labels_say_what_was_dropped_and_how_far_people_agree(trueline, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def label_folder(_params: Any, *arguments: Any) -> dict[str, Any]:
        asked.append(arguments)
        return LABELS

    monkeypatch.setattr(ai_feedback, "label_folder", label_folder)

    assert " ".join(trueline("label", "answers", "round", "--min-gap", "0.5")[1].split()) == (
        "round/pairs.jsonl: 1,185 pairs by reward:reward_model, of 1,200 prompts; 4 ties, 2 small gaps, 9 with fewer "
        "than two different answers; 31 answers without an end, empty or too long. "
        "agreement with people 0.812 of 96 validation pairs "
        "Then: trueline configure prepare.ai_preferences.source=round align.method=dpo"
    )
    assert json.loads(trueline("label", "answers", "round", "--json")[1]) == LABELS
    assert asked == [
        (Path("round"), Named(), Thresholds(0.5, 0.5)),
        (Path("round"), Named(), Thresholds(0.0, 0.5)),
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["collect", "round", "--policy", "sft"], "models/sft does not exist: run the stage that writes it"),
        (["collect", "round", "--policy", "sft", "--answers", "1"], "'--answers'"),
        (["label", "answers", "round", "--reward", "a", "--judge", "http://b"], "--reward and --judge both order"),
        (["label", "answers", "round", "--judge", "http://b"], "give --judge URL and --model NAME"),
        (["label", "answers", "round", "--model", "b"], "give --judge URL and --model NAME"),
        (
            ["label", "answers", "round", "--judge", "b", "--model", "m"],
            "no server that can be asked: it must begin with",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(trueline, arguments: list[str], sentence: str) -> None:
    code, out, err = trueline(*arguments)

    assert (code, out) == (2, "")
    assert sentence in err


def test_a_stage_that_dvc_knows_nothing_of_is_refused(trueline) -> None:
    (MODELS / "sft").mkdir(parents=True)
    code, _, err = trueline("collect", "round", "--policy", "sft")
    assert (code, err) == (2, "trueline: dvc.lock has no models/sft: run trueline run\n")


@pytest.mark.parametrize("stopped", [None, "version 3 was not promoted. The gate says reject."])
def test_rounds_show_what_each_did_and_end_with_1_where_they_stopped(
    trueline, monkeypatch: pytest.MonkeyPatch, stopped: str | None
) -> None:
    interval = {"value": 0.75, "low": 0.7, "high": 0.8}
    row = {
        "round": 1, "policy": {"name": "champion", "version": 1}, "annotator": "reward:r", "pairs": 1185, "version": 2,
        "gate": "promote", "win_rate": {"vs_opponent": interval},
        "ground_truth": {"rule": {"sft": 0.5, "candidate": 0.625, "difference": interval}},
    }  # fmt: skip
    done = {"folder": "feedback", "rounds": [row], "finished": not stopped, "stopped": stopped}
    asked: list[Any] = []

    def run_rounds(what: Asked, _run: Any) -> dict[str, Any]:
        asked.append(what)
        return done

    monkeypatch.setattr("flows.feedback.rounds.run_rounds", run_rounds)
    monkeypatch.setattr("flows.prefect_server.temporary_server.local_server", contextlib.nullcontext)
    monkeypatch.setenv("COLUMNS", "140")

    code, out, _ = trueline("rounds", "2", "--reward", "r", "--on-reject", "continue")

    assert code == (1 if stopped else 0)
    line = "1 version 1 1,185 reward:r 2 promote 0.750 [0.700, 0.800] 0.625; over SFT 0.750 [0.700, 0.800]"
    assert " ".join(out.splitlines()[1].split()) == line
    assert out.splitlines()[2:] == ([f"Stopped: {stopped}"] if stopped else [])
    assert json.loads(trueline("rounds", "1", "--json")[1]) == done
    assert asked[0] == Asked(2, Path("feedback"), "champion", 4, Named(reward="r"), Thresholds(0.0, 0.5), "continue")
