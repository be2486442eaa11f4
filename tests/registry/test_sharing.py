"""Two clones that share a git remote, a DVC remote and MLflow: what one publishes the other takes in."""

import json
import subprocess
from pathlib import Path

import pytest

from flows.sharing import publish as module
from flows.sharing.git import GitError
from flows.sharing.merging import merge
from flows.sharing.publish import publish, publish_after_run, take_in_before_run
from tasks.registry.dvc_outputs.graph import graph_status
from tasks.registry.dvc_outputs.remote import RemoteError
from tasks.registry.promotion import champion
from tasks.registry.promotion.decisions import past_decisions, version_id
from tasks.settings.params import load_params
from tests.registry.conftest import ROOT, aliases, change_params, commit, dvc, run_again, shell

pytestmark = pytest.mark.slow


@pytest.fixture
def machines(challenged: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two clones with one MLflow: version 1 is champion, and the first has another candidate. The first is here."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{challenged / 'mlflow.db'}")
    for name in ("author", "committer"):
        monkeypatch.setenv(f"GIT_{name.upper()}_NAME", "T")
        monkeypatch.setenv(f"GIT_{name.upper()}_EMAIL", "t@example.org")
    place = challenged.parent
    (challenged / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    (place / "store").mkdir()
    dvc("remote", "add", "-d", "store", str(place / "store"), cwd=challenged)
    commit(challenged)
    shell("git", "clone", "-q", "--bare", str(challenged), str(place / "bare"), cwd=place)
    shell("git", "remote", "add", "origin", str(place / "bare"), cwd=challenged)
    shell("git", "fetch", "-q", "origin", cwd=challenged)
    branch = shell("git", "branch", "--show-current", cwd=challenged).stdout.strip()
    shell("git", "branch", "-u", f"origin/{branch}", cwd=challenged)
    shell("git", "clone", "-q", str(place / "bare"), str(place / "second"), cwd=place)
    return challenged, place / "second"


def heads() -> set[str]:
    return set(shell("git", "rev-parse", "HEAD", "@{u}", cwd=".").stdout.split())


def decided() -> list[tuple[str, int]]:
    return [(each["action"], each["policy"]["version"]) for each in past_decisions()]


def test_what_one_publishes_the_other_takes_in(machines, monkeypatch):
    first, second = machines
    champion.promote(load_params())
    Path("params.yaml").write_text("# a note\n" + Path("params.yaml").read_text())
    Path("other").write_text("staged")
    shell("git", "add", "other", cwd=first)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # killed before the push to git
        patch.setattr(module, "_push", lambda _upstream: (_ for _ in ()).throw(KeyboardInterrupt))
        publish()
    published = publish()
    assert published["committed"] == []
    assert published["left"] == ["other", "params.yaml"]
    assert len(heads()) == 1
    assert shell("git", "status", "--porcelain", cwd=first).stdout == "A  other\n M params.yaml\n"
    assert shell("git", "log", "-1", "--format=%s", cwd=first).stdout == "Record version 2: promote\n"

    monkeypatch.chdir(second)
    take_in_before_run()
    assert decided() == [("promote", 1)]
    change_params(registry={"publish": True})
    take_in_before_run()
    assert decided() == [("promote", 1), ("promote", 2)]
    dvc("pull", "-q", cwd=second)
    assert graph_status().stale == []
    assert champion.promote(load_params())["reasons"] == ["Version 2 is the champion already."]


def test_parallel_runs_leave_one_record(machines, monkeypatch):
    """Both decide and publish: what git would leave as conflicts in three files is settled."""
    first, second = machines
    monkeypatch.chdir(second)
    dvc("pull", "-q", "--allow-missing", cwd=second, check=False)
    run_again(content=3, gate={"decision": "reject", "reasons": ["It is worse."]})
    assert not champion.promote(load_params())["promoted"]
    publish()
    theirs = Path("dvc.lock").read_bytes()
    monkeypatch.chdir(first)
    assert champion.promote(load_params())["promoted"]
    published = publish()
    assert (published["merged"], published["conflicts"]) == (1, [])
    assert sorted(decided()) == [("promote", 1), ("promote", 3), ("refuse", 2)]
    assert len(heads()) == 1
    assert shell("git", "status", "--porcelain", "--untracked-files=no", cwd=first).stdout == ""
    assert graph_status().stale == []  # figures.json here belongs to the results of this machine
    assert Path("dvc.lock").read_bytes() != theirs
    assert aliases()["trueline-policy"]["champion"] == 3
    assert json.loads(Path("opponent.json").read_text())["version"] == 1  # as for its promotion


def test_two_changes_of_one_champion_are_told_and_the_registrys_counts(machines, monkeypatch):
    first, second = machines
    params = load_params()
    publish()
    monkeypatch.chdir(second)
    merge()
    (made,) = past_decisions()
    row = json.loads(json.dumps({**made, "id": "lost00000000", "previous": version_id(made["policy"])}))
    row["policy"] |= {"version": 9, "md5": f"{9:032x}.dir"}
    row["policy"]["record"]["policy"]["md5"] = f"{9:032x}.dir"
    with Path("decisions.jsonl").open("a") as log:  # by a command that was killed before it moved the alias
        log.write(json.dumps(row) + "\n")
    publish()
    monkeypatch.chdir(first)
    champion.promote(params)
    published = publish()
    (conflict,) = published["conflicts"]
    assert "lost00000000 (promote of version 9" in conflict
    assert [each["id"] for each in past_decisions()][-1] != "lost00000000"
    assert len(past_decisions()) == 3
    assert champion.promote(params)["reasons"] == ["Version 2 is the champion already."]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (["git", "switch", "-q", "--detach"], r"git is on no branch \(detached HEAD\)"),
        (["git", "branch", "--unset-upstream"], r"has no upstream to push to: git push -u origin \w+ once"),
        (["dvc", "remote", "remove", "store"], "DVC has no default remote"),
    ],
)
def test_what_lacks_is_said_before_anything_is_sent(machines, spoil, sentence):
    shell(*spoil, cwd=machines[0])
    with pytest.raises((GitError, RemoteError), match=sentence):
        publish()
    assert not list((machines[0].parent / "store").iterdir())


def test_after_a_run_a_failure_is_an_alarm_and_what_is_published_is_not_sent_again(machines, monkeypatch):
    assert publish_after_run(load_params()) == []
    change_params(registry={"publish": True})
    commit(machines[0])
    (machines[0].parent / "store").rmdir()
    (machines[0].parent / "store").write_text("no folder")
    (alarm,) = publish_after_run(load_params())
    assert alarm.startswith("not published: dvc push failed")
    (machines[0].parent / "store").unlink()
    assert publish_after_run(load_params()) == []
    assert len(heads()) == 1
    monkeypatch.setattr(module, "publish", lambda: pytest.fail("it was published again"))
    assert publish_after_run(load_params()) == []


def test_a_file_that_no_run_writes_is_for_a_person(machines, monkeypatch):
    first, second = machines
    (second / "params.yaml").write_text("# theirs\n" + (second / "params.yaml").read_text())
    commit(second)
    shell("git", "push", "-q", cwd=second)
    with pytest.raises(GitError, match=r"has commits that change params.yaml: run trueline merge, then trueline publ"):
        publish()
    (first / "params.yaml").write_text("# ours\n" + (first / "params.yaml").read_text())
    commit(first)
    with pytest.raises(GitError, match=r"params.yaml is in conflict: resolve it, git add it, and run trueline merge"):
        merge()
    subprocess.run(["git", "checkout", "-q", "--theirs", "params.yaml"], check=True)
    shell("git", "add", "params.yaml", cwd=first)
    merge()
    publish()
    assert len(heads()) == 1
