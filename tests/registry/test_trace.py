"""Every version ever registered answers for its data, or says that they are gone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.common.errors import InputError
from tasks.data.records import TAGS
from tasks.registry.dvc_outputs.graph import stages_after
from tasks.registry.lineage import explain, trace
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.registry.conftest import change_figures, repro, run_again

# A stage `validate` in the place of the fixture's, whose rows come from a file.
KINDS = ("demonstrations", "preferences", "prompts", "ai_preferences")


def given_data(*rows):
    """Have `validate` write these rows: kind (or quarantine), id, split, source, and perhaps annotator or category."""
    folder = Path("given/validate")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for kind in (*KINDS, "quarantine"):
        lines = [given_line(*row) for row in rows if row[0] == kind]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "ai_preferences.jsonl").rename("given/ai_preferences.jsonl")


def given_line(kind, name, split, source, *tag):
    named = {"id": name, "source": source}
    if kind == "quarantine":
        record = named | dict(zip(["annotator"], tag, strict=False))
        return {"file": "demonstrations.jsonl", **named, "row": 1, "reasons": ["empty"], "record": record}
    return named | {"split": split} | dict(zip([TAGS[kind]], tag, strict=False))


# From before rows named annotators.
FIRST = [
    ("demonstrations", "a", "train", "d.jsonl"),
    ("demonstrations", "b", "validation", "d.jsonl"),
    ("demonstrations", "c", "test", "d.jsonl"),
    ("preferences", "d", "train", "p.jsonl"),
    ("preferences", "e", "validation", "p.jsonl"),
    ("prompts", "f", "train", "r.jsonl"),
    ("prompts", "g", "test", "r.jsonl"),
    ("quarantine", "h", "train", "d.jsonl"),
]
SECOND = [
    ("preferences", "d", "train", "week/p.jsonl", "ann"),
    ("preferences", "e", "validation", "week/q.jsonl", "bob"),
    ("prompts", "f", "train", "r.jsonl", "bob"),  # a category of that name
    ("prompts", "g", "test", "r.jsonl", None),
    ("quarantine", "h", "train", "d.jsonl", "cy"),
    ("ai_preferences", "k", "train", "feedback/round-1/pairs.jsonl", "reward:model"),
]


@pytest.fixture(scope="module")
def two_versions(finished, empty_database, tmp_path_factory):
    """Version 1, PPO on the first data, is champion; version 2, on the second, was refused."""
    folder = tmp_path_factory.mktemp("traced") / "checkout"
    shutil.copytree(finished, folder)
    shutil.copy(empty_database, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        given_data(*FIRST)
        change_figures(content=1)
        repro()
        assert champion.promote(load_params())["promoted"]
        given_data(*SECOND)
        run_again(content=2, gate={"decision": "reject", "reasons": ["Too long."]})
        assert champion.promote(load_params())["version"] == 2
    return folder


@pytest.fixture
def traced(two_versions, monkeypatch):
    """Both versions, to be asked only."""
    monkeypatch.chdir(two_versions)
    return load_params()


@pytest.fixture
def lossy(two_versions, tmp_path, monkeypatch):
    """Both versions, to lose something of."""
    shutil.copytree(two_versions, tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "checkout")
    return load_params()


def versions_of(params, what, name):
    return trace.trace(params, what, name)["versions"]


def test_versions_promoted_or_not_are_distinguished(traced):
    answer = trace.trace(traced, "row", "a")
    first, second = answer["versions"]
    assert first == {
        "version": 1,
        "reward_version": 1,
        "promoted": True,
        "method": "ppo",
        "data": explain.why(traced, "1")["data"]["md5"],
        "policy": True,
        "reward": True,
        "stages": ["sft"],
        "rows": {"demonstrations": {"train": 1}},
        "quarantined": 0,
        "unattributed": None,
    }
    assert (second["version"], second["promoted"], second["policy"], second["reward"]) == (2, False, False, False)
    assert (second["stages"], second["rows"], answer["in_any"]) == ([], {}, True)


@pytest.mark.parametrize("kind", ["preferences", "demonstrations"])
def test_where_no_reward_model_was_trained_no_row_is_behind_it(kind):
    record = {"method": "ppo", "data": {"md5": "d"}, "figures": {"reward": {"trained": False}}}
    policy: Any = {"version": 1, "reward_version": 1, "record": record}
    found = trace.Found({kind: {"train": 1, "validation": 1}}, 0, None)
    answer = trace._traced(policy, True, found)
    is_behind = kind == "demonstrations"
    assert (answer["policy"], answer["reward"], answer["stages"]) == (is_behind, False, ["sft"] if is_behind else [])
    del record["figures"]
    assert trace._traced(policy, True, found)["reward"] is True


@pytest.mark.parametrize(
    ("row", "policy", "reward", "stages"),
    [
        ("a", True, True, ["sft"]),  # everything after SFT comes from it
        ("b", False, False, []),  # held out for validation
        ("c", False, False, []),  # measured on
        ("d", True, True, ["reward"]),  # PPO learns from what the reward model says
        ("e", False, False, ["held_out_reward"]),  # which no other model comes from
        ("f", True, False, ["ppo"]),
        ("g", False, False, []),
        ("h", False, False, []),  # quarantined
    ],
)
def test_split_and_kind_say_what_learned_from_a_row(traced, row, policy, reward, stages):
    first = trace.trace(traced, "row", row)["versions"][0]
    assert (first["policy"], first["reward"], first["stages"]) == (policy, reward, stages)
    assert (first["quarantined"], bool(first["rows"])) == ((1, False) if row == "h" else (0, True))


@pytest.mark.parametrize(("what", "name"), [("row", "k"), ("source", "feedback"), ("annotator", "reward:model")])
def test_ai_pairs_are_found_in_their_own_data(traced, what, name):
    first, second = versions_of(traced, what, name)
    assert (first["rows"], second["rows"]) == ({}, {"ai_preferences": {"train": 1}})
    assert (second["policy"], second["reward"], second["stages"]) == (False, False, [])  # PPO does not learn from them


def test_dpo_learns_from_ai_pairs_and_no_reward_model_does():
    record = {"data": {"md5": "x.dir"}, "method": "dpo"}
    policy: Any = {"version": 1, "reward_version": 1, "record": record}
    answer = trace._traced(policy, False, trace.Found({"ai_preferences": {"train": 1}}, 0, None))
    assert (answer["policy"], answer["reward"], answer["stages"]) == (True, False, ["dpo"])


def test_dpo_learns_from_the_pairs_itself_and_from_no_prompt():
    record = {"data": {"md5": "x.dir"}, "method": "dpo"}
    for kind, policy, stages in (("preferences", True, ["reward", "dpo"]), ("prompts", False, [])):
        found = trace.Found({kind: {"train": 1}}, 0, None)
        answer = trace._traced({"version": 1, "reward_version": 1, "md5": "y", "record": record}, False, found)
        assert (answer["policy"], answer["stages"]) == (policy, stages)


def test_a_source_counts_all_its_rows(traced):
    first, second = trace.trace(traced, "source", "d.jsonl")["versions"]
    assert first["rows"] == {"demonstrations": {"test": 1, "train": 1, "validation": 1}}
    assert (first["policy"], first["quarantined"]) == (True, 1)
    assert (second["policy"], second["rows"], second["quarantined"]) == (False, {}, 1)


@pytest.mark.parametrize("name", ["week", "./week/"])
def test_a_folder_counts_the_rows_of_its_files(traced, name):
    answer = trace.trace(traced, "source", name)
    assert (answer["name"], answer["versions"][0]["rows"]) == ("week", {})
    assert answer["versions"][1]["rows"] == {"preferences": {"train": 1, "validation": 1}}


def test_names_may_be_spelt_otherwise_than_in_the_rows(traced):
    annotators = (" ann\n", "Ann", "\u202ea\u200bnn", "\uff41\uff4e\uff4e")
    names = [("source", "week/../week//p.jsonl"), ("row", "d "), *(("annotator", name) for name in annotators)]
    for what, name in names:
        assert versions_of(traced, what, name)[1]["rows"] == {"preferences": {"train": 1}}


def test_data_from_before_a_name_had_this_spelling_are_found():
    assert all(trace._has({"annotator": name}, "annotator", "ann") for name in ("Ann", "a\u200bnn", "\uff21nn"))
    assert not trace._has({"annotator": None}, "annotator", "ann")
    assert not trace._has({}, "annotator", "ann")


def test_a_pair_is_found_by_each_of_its_votes():
    votes = [{"annotator": name, "id": f"id of {name}", "source": f"raw/{name}.jsonl"} for name in ("ann", "bob")]
    row = {"id": "ab", "source": "raw/ann.jsonl", "annotator": None, "votes": votes}
    for field, names in {
        "annotator": ["ann", "bob"],
        "id": ["ab", "id of bob"],
        "source": ["raw/ann.jsonl", "raw/bob.jsonl", "raw"],
    }.items():
        assert all(trace._has(row, field, name) for name in names)
        assert not trace._has(row, field, "cy")
    assert not trace._has(row, "annotator", None)  # it is somebody's


def test_a_name_that_nobody_sees_is_not_traced(traced):
    with pytest.raises(InputError, match=r"^'\\u200b' names nothing: name one annotator"):
        trace.trace(traced, "annotator", "\u200b")


@pytest.mark.parametrize(
    ("annotator", "learned", "stages", "rows", "quarantined"),
    [
        ("ann", True, ["reward"], {"preferences": {"train": 1}}, 0),
        ("bob", False, ["held_out_reward"], {"preferences": {"validation": 1}}, 0),
        ("cy", False, [], {}, 1),
    ],
)
def test_an_annotator_is_traced_where_rows_name_one(traced, annotator, learned, stages, rows, quarantined):
    answer = trace.trace(traced, "annotator", annotator)
    first, second = answer["versions"]
    assert (second["policy"], second["reward"], second["stages"]) == (learned, learned, stages)
    assert (second["rows"], second["quarantined"], second["unattributed"]) == (rows, quarantined, 0)
    assert answer["in_any"]
    # a, d and e, which sft, reward and judge learned from, may be anybody's.
    assert (first["policy"], first["reward"], first["stages"], first["unattributed"]) == (None, None, [], 3)
    assert (first["rows"], first["quarantined"]) == ({}, 0)


def test_who_is_named_nowhere_is_distinguished_from_a_no(traced):
    answer = trace.trace(traced, "annotator", "dee")
    assert ([each["policy"] for each in answer["versions"]], answer["in_any"]) == ([None, False], False)


@pytest.mark.parametrize(
    ("method", "rows", "unattributed", "policy", "reward", "count"),
    [
        ("ppo", {}, {"preferences": {"train": 2, "validation": 1, "test": 4}}, None, None, 3),  # the judge's too
        ("dpo", {}, {"preferences": {"train": 2}}, None, None, 2),
        ("ppo", {}, {"demonstrations": {"validation": 5}, "preferences": {"validation": 1}}, False, False, 1),
        ("ppo", {"preferences": {"train": 1}}, {"demonstrations": {"train": 6}}, True, True, 6),  # one is enough
    ],
)
def test_rows_without_annotator_leave_no_sure_no(method, rows, unattributed, policy, reward, count):
    record, found = {"data": {"md5": "x.dir"}, "method": method}, trace.Found(rows, 0, unattributed)
    answer = trace._traced({"version": 1, "reward_version": 1, "md5": "y", "record": record}, False, found)
    assert (answer["policy"], answer["reward"], answer["unattributed"]) == (policy, reward, count)


def test_what_no_data_hold_is_distinguished_from_a_no(traced):
    answer = trace.trace(traced, "source", "d.json")
    assert not answer["in_any"]
    assert trace.trace(traced, "row", "h")["in_any"]


def test_data_that_are_gone_are_no_no(lossy):
    md5 = explain.why(lossy, "1")["data"]["md5"]
    Path(".dvc/cache/files/md5", md5[:2], md5[2:]).unlink()
    first, second = versions_of(lossy, "row", "a")
    assert (first["policy"], first["reward"], first["rows"], first["quarantined"]) == (None, None, None, None)
    assert (second["policy"], second["reward"], second["rows"], second["quarantined"]) == (False, False, {}, 0)


def test_versions_that_only_the_record_knows_answer_too(lossy, empty_database):
    shutil.copy(empty_database, "mlflow.db")
    assert [each["policy"] for each in versions_of(lossy, "row", "d")] == [True, True]


def test_before_the_first_version_there_is_nothing_to_trace(tracked):
    with pytest.raises(InputError, match="trueline-policy has no version yet"):
        trace.trace(load_params(), "row", "a")


def test_an_exclusion_names_the_stages_and_runs_none(tracked):
    Path("exclude.txt").touch()
    lock = Path("dvc.lock").read_bytes()
    after = [
        "prepare",
        "validate",
        "reward_functions",
        "sft",
        "reward",
        "held_out_reward",
        "reward_check",
        "align",
        "evaluate",
        "gate",
    ]
    excluded = trace.exclude(load_params(), "row", "a")
    assert (excluded["file"], excluded["added"], sorted(excluded["stages"])) == ("exclude.txt", True, sorted(after))
    assert excluded["stages"] == stages_after("prepare")
    assert not trace.exclude(load_params(), "row", "a")["added"]
    assert trace.exclude(load_params(), "annotator", "ann #7")["stages"] == excluded["stages"]
    assert Path("exclude.txt").read_text() == 'row a\nannotator "ann #7"\n'
    assert Path("dvc.lock").read_bytes() == lock
    assert stages_after("gate") == ["gate"]
