"""Old results go from cache, remote and MLflow; all that kept versions need works afterwards, also after kills."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dvc_objects.fs.local import LocalFileSystem

from flows import gc
from flows.gc import collect_garbage
from flows.processes.locks import one_flow_at_a_time
from tasks.common import progress
from tasks.common.errors import InputError
from tasks.registry.export.folders import export, export_reward
from tasks.registry.lineage import trace as tracing
from tasks.registry.lineage.explain import why
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.registry.conftest import aliases, change_figures, commit, dvc, own_artifacts, repro, run_again, shell

KEEP = "champion,previous,challenger,held"
CACHE, REMOTE = Path(".dvc/cache"), Path("../remote")
LATER = datetime.now(UTC) + timedelta(days=40)  # when everything is older than 30 days
POLICY, REWARD = "trueline-policy", "trueline-reward"


class Killed(BaseException):
    """The process is gone: nothing of the program may catch it."""


def collect(keep=KEEP, *, yes=True, now=LATER):
    return collect_garbage(load_params(), keep, 30, yes=yes, now=now)


def contents():
    """All that lies in the three places."""
    places = (CACHE / "files", CACHE / "runs", REMOTE, Path("mlruns"))
    return {path: path.stat().st_size for place in places for path in place.rglob("*") if path.is_file()}


def check_kept(*versions):
    """Everything that people do with a version works."""
    for version in versions:
        for write in (export, export_reward):
            write(load_params(), version, Path("exported"))
            shutil.rmtree("exported")
    traced = {each["version"]: each["policy"] for each in tracing.trace(load_params(), "row", "1")["versions"]}
    assert all(traced[int(version)] is False for version in versions)


@pytest.fixture(scope="module")
def grown(challenge, tmp_path_factory):
    """Version 3 is champion, 2 was before it, 1 before that, and 4 is challenger; not to be changed."""
    folder = tmp_path_factory.mktemp("grown") / "checkout"
    shutil.copytree(challenge, folder)
    own_artifacts(folder, challenge)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for content in (3, 4):
            assert champion.promote(load_params())["promoted"]
            run_again(content=content)
        champion.register(load_params())
        commit(folder)
        dvc("remote", "add", "-d", "store", "../remote", cwd=folder)
        shutil.copytree(CACHE, REMOTE)  # dvc push takes the outputs of dvc.lock alone
    return folder


@pytest.fixture
def checkout(grown, tmp_path, monkeypatch):
    """A copy, with a remote of its own, as the working folder."""
    folder = tmp_path / "checkout"
    shutil.copytree(grown.parent, tmp_path, dirs_exist_ok=True)
    own_artifacts(folder, grown)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tracing, "_count", lambda *_: {})  # the stages write no rows
    return folder


@pytest.mark.slow
def test_what_no_version_needs_goes_from_all_places_and_all_else_works_as_before(checkout):
    before, explained = contents(), {number: why(load_params(), number) for number in "1234"}
    shown = collect(yes=False)
    assert contents() == before
    assert [(each["model"], each["version"], each["reasons"]) for each in shown["versions"]] == [
        (POLICY, 1, []),
        (POLICY, 2, ["previous"]),
        (POLICY, 3, ["champion"]),
        (POLICY, 4, ["challenger"]),
        (REWARD, 1, []),
        (REWARD, 2, [f"of {POLICY} 2"]),
        (REWARD, 3, [f"of {POLICY} 3"]),
        (REWARD, 4, [f"of {POLICY} 4"]),
    ]
    done = collect()
    assert done == shown | {"deleted": True}
    gone = before.keys() - contents().keys()
    for place, root in zip(done["places"], (CACHE, REMOTE, Path("mlruns")), strict=True):
        lost = [path for path in gone if path.is_relative_to(root)]
        assert place["objects"] == len(lost) > 0
        assert place["bytes"] == sum(before[path] for path in lost)
    assert all(any(folder.iterdir()) for folder in (CACHE / "runs").glob("*/*"))  # DVC fails on an empty one

    check_kept("2", "3", "4")
    today = LATER.date().isoformat()
    assert why(load_params(), "1") == explained["1"] | {"weights_deleted": today}
    assert {number: why(load_params(), number) for number in "234"} == {number: explained[number] for number in "234"}
    commit_of_1 = explained["1"]["git_commit"]
    with pytest.raises(
        InputError, match=rf"version 1 were deleted by trueline gc on {today}: check out .*{commit_of_1}"
    ):
        export(load_params(), "1", Path("exported"))
    assert sum(place["objects"] for place in collect()["places"]) == 0

    assert champion.rollback(load_params(), "it flatters")["champion"] == 2
    Path("fail").write_text("align")  # no stage of a kept version is computed again
    change_figures(content=2)
    repro()
    assert repro() == []


@pytest.mark.slow
def test_after_kills_at_any_place_the_next_call_finishes(checkout, monkeypatch):
    complete = shutil.copytree(checkout.parent, checkout.parent.with_name("complete"))
    remove = LocalFileSystem.remove

    def dies_halfway(fs, paths, **options):
        remove(fs, paths[: len(paths) // 2], **options)
        raise Killed

    def dies(*_arguments):
        raise Killed

    for owner, name, death in (
        (gc, "delete_weights", dies),
        (gc, "delete", dies),
        (LocalFileSystem, "remove", dies_halfway),
        (LocalFileSystem, "remove", dies_halfway),
    ):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(owner, name, death)
            collect()
        check_kept("2", "3", "4")
    collect()
    check_kept("2", "3", "4")
    left = {path: size for path, size in contents().items() if path.parts[0] != "mlruns"}
    monkeypatch.chdir(complete / "checkout")
    collect()
    assert left == {path: size for path, size in contents().items() if path.parts[0] != "mlruns"}


@pytest.mark.slow
def test_what_is_named_is_young_or_in_a_branch_stays(checkout, monkeypatch):
    before = contents()
    assert sum(place["objects"] for place in collect(now=None)["places"]) == 0  # all is of today
    for named in ("1", "champion,1"):
        assert "named by --keep" in collect(named, yes=False)["versions"][0]["reasons"]
    shell("git", "tag", "release", "HEAD~1", cwd=checkout)
    shown = collect(yes=False)["versions"][0]
    assert shown["reasons"] == ["release"]
    assert contents() == before
    with pytest.raises(InputError, match=r"^--keep does not know latest: give champion, previous"):
        collect("latest")
    with pytest.raises(InputError, match=r"^trueline-policy has no version 9: "):
        collect("9")
    with one_flow_at_a_time(), pytest.raises(InputError, match=r"^a flow runs in this checkout already"):
        collect()
    monkeypatch.setattr(gc, "running", lambda: [progress.StageProgress(7, "sft")])
    with pytest.raises(InputError, match=r"^sft runs in this checkout \(process 7\): wait for it$"):
        collect()
    assert contents() == before


@pytest.mark.slow
def test_an_alias_is_given_up_before_the_weights_behind_it_go(checkout):
    assert "previous" in aliases()[POLICY]
    done = collect("champion")
    assert done["aliases"] == [(REWARD, "previous"), (POLICY, "previous")]
    assert "previous" not in aliases()[POLICY]
    check_kept("3", "4")
    with pytest.raises(InputError, match="there is no previous champion"):
        champion.rollback(load_params(), "it flatters")
