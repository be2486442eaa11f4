"""Rounds of iterative DPO over the project's graph with stages that cost nothing: what each did, and after kills."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.feedback import rounds as module
from flows.feedback.ai_feedback import Named
from flows.feedback.rounds import Asked, run_rounds
from tasks.common.errors import InputError
from tasks.common.files import write_json, write_jsonl
from tasks.data.sources.feedback import LABELS, MANIFEST, PAIRS
from tasks.data.sources.source import files_of, identity
from tasks.feedback.label import Thresholds
from tasks.registry.lineage.explain import why
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.registry.conftest import change_params, run_again

ASKED = Asked(2, Path("feedback"), "champion", 4, Named(), Thresholds(0.0, 0.5), "stop")
PROMOTE, REJECT = ({"decision": each, "reasons": [f"It is {each}."], "checks": []} for each in ("promote", "reject"))


class Loop:
    """What a round calls: it notes the calls, writes what the commands write, and may be killed at one of them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.killed_at = ""
        self.gates = {0: PROMOTE}  # from this round on

    def call(self, what: str) -> None:
        self.calls.append(what)
        if what == self.killed_at:
            self.killed_at = ""
            raise KeyboardInterrupt

    def collect(self, params: Any, folder: Path, wanted: Any) -> None:
        self.call(f"collect {folder.name}")
        version = why(params, wanted.policy)["version"] if wanted.policy != "sft" else None
        policy = {"name": wanted.policy, "version": version, "md5": "abc.dir"}
        write_json(folder / MANIFEST, {"policy": policy, "seed": wanted.seed, "answers": wanted.answers})

    def label(self, _params: Any, folder: Path, _by: Named, _thresholds: Thresholds) -> None:
        self.call(f"label {folder.name}")
        manifest = json.loads((folder / MANIFEST).read_text())
        write_jsonl(folder / PAIRS, [{"prompt": "q", "chosen": "a", "rejected": str(manifest["seed"])}])
        labels = {"policy": manifest["policy"], "annotator": "reward:r", "agreement": {"pairs": 9, "share": 0.8}}
        write_json(folder / LABELS, labels | {"counts": {"pairs": 7}})

    def run(self) -> Any:
        """Do what a flow does; another number of rounds gives another policy."""
        params = load_params()
        files = files_of(params.prepare.ai_preferences)
        self.call(f"run {len(files)}")
        sources = {name: {"rows": 7, **identity(Path(file.source))} for name, file in files.items()}
        gate = self.gates[max(number for number in self.gates if number <= len(files))]
        prepared = {"demonstrations": {"rows_read": 30, "sources": {}}, "ai_preferences": {"sources": sources}}
        run_again(prepare=prepared, content=len(files), gate=gate)
        return SimpleNamespace(promotion=champion.promote(load_params()))


@pytest.fixture
def loop(challenge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loop:
    """Version 1 is champion."""
    shutil.copytree(challenge, tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "checkout")
    change_params(prepare={"ratings": load_params().prepare.ratings.model_dump()})
    found = Loop()
    monkeypatch.setattr(module, "collect_answers", found.collect)
    monkeypatch.setattr(module, "label_folder", found.label)
    return found


def learned_from(version: int) -> dict[str, Any]:
    """The rounds behind a version, as its lineage names them: policy that answered and what ordered the answers."""
    sources = why(load_params(), str(version))["data"]["prepare"]["ai_preferences"]["sources"]
    return {name: (each["policy"]["version"], each["annotator"], each["rows"]) for name, each in sources.items()}


@pytest.mark.slow
def test_each_round_asks_the_champion_and_its_version_names_the_rounds_before(loop: Loop) -> None:
    done = run_rounds(ASKED, loop.run)

    assert loop.calls == ["collect round-1", "label round-1", "run 1", "collect round-2", "label round-2", "run 2"]
    assert (load_params().align.method, load_params().prepare.ai_preferences.source) == ("dpo", "feedback")
    rows = [
        (row["round"], row["policy"]["version"], row["pairs"], row["version"], row["gate"]) for row in done["rounds"]
    ]
    first, second = (row["version"] for row in done["rounds"])
    assert rows == [(1, 1, 7, first, "promote"), (2, first, 7, second, "promote")]
    assert (done["finished"], done["stopped"]) == (True, None)
    assert learned_from(first) == {"feedback/round-1/pairs.jsonl": (1, "reward:r", 7)}
    assert learned_from(second) == {
        "feedback/round-1/pairs.jsonl": (1, "reward:r", 7),
        "feedback/round-2/pairs.jsonl": (first, "reward:r", 7),
    }
    seeds = [json.loads(Path(f"feedback/round-{n}", MANIFEST).read_text())["seed"] for n in (1, 2)]
    assert seeds[0] != seeds[1]


@pytest.mark.slow
def test_after_each_kill_the_same_command_does_what_is_left(loop: Loop) -> None:
    done_at_last: list[dict[str, Any]] = []
    # Where round 2 has no answers, the flow of round 1 is asked again, and has nothing to do.
    left = {
        "collect round-2": ["collect round-1", "label round-1", "run 1", "collect round-2"],
        "label round-2": ["run 1", "collect round-2", "label round-2"],
        "run 2": ["label round-2", "run 2"],
        "nowhere": ["run 2"],
        "once more": ["run 2"],
    }
    for at, expected in left.items():
        loop.calls, loop.killed_at = [], at
        try:
            done_at_last.append(run_rounds(ASKED, loop.run))
        except KeyboardInterrupt:
            assert at in expected
        assert loop.calls == expected
    first, again = done_at_last
    assert first == again
    assert [row["policy"]["version"] for row in first["rounds"]] == [1, first["rounds"][0]["version"]]


@pytest.mark.slow
def test_a_reject_stops_the_rounds_unless_they_are_to_go_on(loop: Loop) -> None:
    loop.gates[1] = REJECT
    done = run_rounds(ASKED, loop.run)
    assert loop.calls == ["collect round-1", "label round-1", "run 1"]
    assert (done["finished"], done["rounds"][0]["gate"]) == (False, "reject")
    assert done["stopped"].endswith("was not promoted. The gate says reject. It is reject.")

    done = run_rounds(ASKED._replace(on_reject="continue"), loop.run)
    assert (done["finished"], done["stopped"]) == (True, None)
    assert [row["policy"]["version"] for row in done["rounds"]] == [1, 1]  # version 1 stayed champion


@pytest.mark.slow
def test_a_version_that_awaits_approval_stops_them(loop: Loop) -> None:
    change_params(registry={"approval": True})
    done = run_rounds(ASKED._replace(on_reject="continue"), loop.run)
    assert "awaits approval: decide, then run the same command again" in done["stopped"]


@pytest.mark.parametrize(
    ("rounds", "source", "sentence"),
    [
        ([1, 3], "infra/none.jsonl", "feedback has 2 rounds, but no round-2: bring it back"),
        ([1, 2, 3], "infra/none.jsonl", "feedback has 3 rounds already: ask for at least as many"),
        ([], "mine", "prepare.ai_preferences.source is mine, which the rounds in feedback would replace"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(
    loop: Loop, rounds: list[int], source: str, sentence: str
) -> None:
    for number in rounds:
        write_json(Path(f"feedback/round-{number}", MANIFEST), {})
    change_params(prepare={"ai_preferences": {**load_params().prepare.ai_preferences.model_dump(), "source": source}})
    with pytest.raises(InputError, match=sentence):
        run_rounds(ASKED, loop.run)
    assert not loop.calls
