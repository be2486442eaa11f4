"""What is young, or named by git, keeps all that it refers to."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.garbage import Roots, modified, surveyed
from tasks.registry.dvc_outputs.named_contents import Named, named_contents
from tasks.registry.dvc_outputs.stages import lock_entry, output_hashes, recorded_outputs
from tests.registry.conftest import commit, dvc, shell

CACHE = Path(".dvc/cache")
NOTHING = Roots(frozenset(), frozenset())


def cached(md5):
    return CACHE / "files/md5" / md5[:2] / md5[2:]


def with_files(hashes):
    """The contents and, of folders, the files."""
    files = {each["md5"] for md5 in hashes if md5.endswith(".dir") for each in json.loads(cached(md5).read_text())}
    return set(hashes) | files


@pytest.fixture
def old(repository):
    """A finished pipeline whose every object was written ten days ago."""
    for path in CACHE.rglob("*"):
        os.utime(path, (time.time() - 864_000,) * 2)
    return repository


def going(roots=NOTHING):
    with surveyed(roots, datetime.now(UTC) - timedelta(days=5)) as found:
        [survey] = found.places
        return {*survey.objects}, {*survey.runs}


def test_an_old_object_of_a_young_folder_or_run_stays(old):
    everything = {"".join(path.parts[-2:]) for path in (CACHE / "files").rglob("*") if path.is_file()}
    assert going()[0] == everything
    sft = output_hashes("sft")["models/sft"]
    os.utime(cached(sft))  # as another checkout makes the folder anew, of files that are there
    assert going()[0] == everything - with_files([sft])

    os.utime(cached(sft), (0, 0))
    entries = [path for path in (CACHE / "runs").rglob("*") if path.is_file() and "make.py align" in path.read_text()]
    assert not entries  # the command names the method
    [entry] = [path for path in (CACHE / "runs").rglob("*") if path.is_file() and "make.py ppo" in path.read_text()]
    os.utime(entry)
    row = lock_entry("align") or {}
    hashes = {part["md5"] for part in (*row["outs"], *row["deps"]) if cached(part["md5"]).exists()}
    objects, runs = going()
    assert objects == everything - with_files(hashes)
    assert entry.relative_to(CACHE / "runs").as_posix() not in runs


def test_a_stage_of_a_kept_version_keeps_all_its_outputs(old):
    from tasks.registry.dvc_outputs.stages import lock_key

    kept = with_files(output_hashes("align").values())
    objects, _ = going(Roots(frozenset(), frozenset([lock_key("align") or ""])))
    assert not objects & kept
    assert len(kept) > 3  # the model, its file, metrics and curve


def test_a_damaged_listing_is_no_reason_to_delete_what_it_names(old):
    sft = output_hashes("sft")["models/sft"]
    cached(sft).chmod(0o644)
    cached(sft).write_text("[]")
    with pytest.raises(InputError, match=rf"^DVC's listing {sft} is damaged, and what it names is not known: run dvc"):
        going(Roots(frozenset([sft]), frozenset()))


@pytest.mark.slow
def test_branches_tags_worktrees_and_files_of_dvc_add_name_contents(repository):
    lock = {md5 for path, md5 in recorded_outputs().items() if path.startswith("models/")}
    found = named_contents()
    branch = shell("git", "branch", "--show-current", cwd=".").stdout.strip()
    assert found.keys() == {"dvc.lock here", "HEAD", branch}
    assert all(lock <= named.outputs for named in found.values())
    shell("git", "tag", "v1", cwd=".")
    shell("git", "worktree", "add", "-q", "../tree", cwd=".")
    Path("dvc.lock").unlink()
    Path("rows.jsonl").write_text("{}\n")
    dvc("add", "-q", "rows.jsonl", cwd=".")
    commit(repository)
    found = named_contents()
    tree = str((repository.parent / "tree").resolve())
    assert lock <= found["v1"].contents & found[f"worktree {tree}"].contents
    added = "8a80554c91d9fca8acb82f023de02f11"  # md5 of `{}` and a newline
    assert found["dvc.lock here"].contents == found["HEAD"].contents == {added}


def test_a_folder_of_code_is_named_and_is_no_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n")
    code, output = f"{'a' * 32}.dir", f"{'b' * 32}.dir"
    stages = {
        "sft": {"cmd": "c", "deps": [{"path": "tasks/data", "md5": code}], "outs": [{"path": "m", "md5": output}]},
        "gate": {"cmd": "c", "deps": [{"path": "m", "md5": output}, {"path": "tasks/data", "md5": code}]},
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
    assert named_contents() == {"dvc.lock here": Named({code, output}, {output})}


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"mtime": 86_400.0}, datetime(1970, 1, 2, tzinfo=UTC)),
        ({"LastModified": datetime(2026, 1, 2, tzinfo=UTC)}, datetime(2026, 1, 2, tzinfo=UTC)),
        ({"updated": "2026-01-02T00:00:00Z"}, datetime(2026, 1, 2, tzinfo=UTC)),
        ({"last_modified": datetime(2026, 1, 2)}, datetime(2026, 1, 2, tzinfo=UTC)),
        ({"size": 3}, None),
    ],
)
def test_file_systems_tell_the_time_in_several_ways(about, expected):
    assert modified(about) == expected
