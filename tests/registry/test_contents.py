"""Every byte is the one that the record says, or is repaired or reported; what is taken from DVC's internals holds."""

import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml

from flows.chat import stage_folder, version_folder
from flows.feedback.ai_feedback import Named, _labeller, _policy
from flows.inspection.doctor import check_leftovers
from flows.stages import reproduce as reproducing
from flows.stages.reproduce import reproduce
from tasks.common.errors import InputError
from tasks.registry.dvc_outputs import contents, graph, stages
from tasks.registry.dvc_outputs.cache import DAMAGED, DamagedError, NotCachedError, materialise, secure
from tasks.registry.dvc_outputs.contents import check_inputs, restore_outputs
from tasks.registry.export.folders import export
from tasks.registry.promotion import champion
from tasks.registry.promotion.decisions import past_decisions
from tasks.settings.params import load_params
from tests.registry.conftest import STAGES, aliases, dvc, repro, run_again

SFT = Path("models/sft")
MODES = [0o444, 0o644]  # DVC trusts the first and deletes the second


def lock_file():
    """What dvc.lock says: DVC breaks the long lines of these tests' commands otherwise when it writes them again."""
    return yaml.safe_load(Path("dvc.lock").read_text())


def cached(md5):
    return Path(".dvc/cache/files/md5", md5[:2], md5[2:])


def listed(stage, path):
    """The objects of an output: the folder's listing, and its files by name."""
    md5 = stages.output_hashes(stage)[path.as_posix()]
    return cached(md5), {row["relpath"]: cached(row["md5"]) for row in json.loads(cached(md5).read_text())}


def flip(file, mode=None, place=-1):
    """Flip a bit as a disk does: name, size, time and mode stay."""
    before = file.stat()
    file.chmod(0o644)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.chmod(before.st_mode & 0o777 if mode is None else mode)


def flip_sft(mode, which):
    listing, files = listed("sft", SFT)
    damaged = listing if which == "listing" else files["content.txt"]
    flip(damaged, mode)
    return damaged, damaged.read_bytes()


def test_outside_a_repository_there_is_nothing_to_restore(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    restore_outputs("sft")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_failing_stage_leaves_every_earlier_output_as_it_was(repository):
    watched = [Path("models/sft/content.txt"), Path("metrics/sft.json"), Path("curves/sft.csv"), Path("dvc.lock")]
    before = [path.read_bytes() for path in watched]
    settings = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub(r"(\nsft:\n(?: *#.*\n)*  epochs: )\d+", r"\g<1>99", settings))
    Path("fail").write_text("sft")
    failed = dvc("repro", "sft", cwd=repository, check=False)
    assert failed.returncode == 255
    assert "sft: the input is bad: fix it" in failed.stderr
    assert [path.read_bytes() for path in watched] == before
    assert json.loads(dvc("status", "--json", cwd=repository).stdout) == {
        "sft": [{"changed deps": {"params.yaml": {"sft": "modified"}}}]
    }


@pytest.mark.slow
def test_a_failing_algorithm_is_restored_under_the_stage_that_runs_it(repository):
    Path("fail").write_text("ppo")
    Path("figures.json").write_text(Path("figures.json").read_text() + " ")
    before = Path("models/ppo/content.txt").read_bytes()
    assert dvc("repro", "--single-item", "align", cwd=repository, check=False).returncode == 255
    assert Path("models/ppo/content.txt").read_bytes() == before


def test_by_hand_only_what_is_missing_is_restored(repository):
    Path("models/sft/content.txt").write_text("made by hand")
    Path("metrics/sft.json").unlink()
    restore_outputs("sft")
    assert Path("models/sft/content.txt").read_text() == "made by hand"
    assert json.loads(Path("metrics/sft.json").read_text()) == {"loss": 0.5}


@pytest.mark.slow
def test_what_fills_the_disk_goes_before_anything_is_written(repository, monkeypatch):
    before = Path("models/sft/content.txt").read_text()
    Path("models/sft/half.bin").write_bytes(b"half")
    monkeypatch.setenv("DVC_STAGE", "sft")
    brought = []

    def look_and_secure(*arguments):
        brought.append(Path("models/sft").exists())
        secure(*arguments)

    monkeypatch.setattr(contents, "secure", look_and_secure)
    restore_outputs("sft")

    assert brought[0] is False
    assert [path.name for path in Path("models/sft").iterdir()] == ["content.txt"]
    assert Path("models/sft/content.txt").read_text() == before


def test_what_the_cache_lacks_is_reported_and_left_alone(repository, caplog):
    shutil.rmtree(".dvc/cache")
    shutil.rmtree("models/sft")
    restore_outputs("sft")
    assert "models/sft is not in DVC's cache" in caplog.text
    assert not Path("models/sft").exists()
    assert Path("metrics/sft.json").exists()


def test_a_cached_folder_is_written_wherever_it_is_wanted(repository):
    md5 = stages.output_hashes("sft")["models/sft"]
    expected = Path("models/sft/content.txt").read_bytes()
    shutil.rmtree("models/sft")
    Path("elsewhere").mkdir()
    Path("elsewhere/old").touch()
    materialise(md5, Path("elsewhere"))
    assert [path.name for path in Path("elsewhere").iterdir()] == ["content.txt"]
    assert Path("elsewhere/content.txt").read_bytes() == expected
    materialise(stages.output_hashes("sft")["metrics/sft.json"], Path("figures"))
    assert json.loads(Path("figures").read_text()) == {"loss": 0.5}


@pytest.mark.parametrize("lost", ["everything", "one file"])
def test_a_folder_that_is_not_all_in_the_cache_is_refused(repository, lost):
    md5 = stages.output_hashes("sft")["models/sft"]
    for path in Path(".dvc/cache").rglob("*"):
        if path.is_file() and (lost == "everything" or path.suffix != ".dir"):
            path.chmod(0o644)
            path.unlink()
    with pytest.raises(InputError, match=r"DVC's cache lacks .*: run dvc fetch .* once a remote that has it is named"):
        materialise(md5, Path("elsewhere"))
    assert not Path("elsewhere").exists()
    dvc("remote", "add", "-q", "-d", "store", "/nowhere", cwd=repository)  # what the sentence advises
    with pytest.raises(InputError, match=r"DVC's cache lacks .*: run dvc fetch --all-commits$"):
        materialise(md5, Path("elsewhere"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "which", "source"),
    [
        (0o444, "file", "working folder"),
        (0o644, "file", "working folder"),
        (0o444, "listing", "working folder"),
        (0o444, "file", "remote"),
        (0o644, "listing", "remote"),
    ],
)
def test_a_damaged_object_is_taken_from_a_place_that_has_it_whole(repository, caplog, tmp_path, mode, which, source):
    expected = (SFT / "content.txt").read_bytes()
    if source == "remote":
        dvc("remote", "add", "-d", "store", str(tmp_path / "store"), cwd=repository)
        dvc("push", "-q", "sft", cwd=repository)
        shutil.rmtree(SFT)
    damaged, spoilt = flip_sft(mode, which)
    materialise(stages.output_hashes("sft")["models/sft"], Path("elsewhere"))
    assert Path("elsewhere/content.txt").read_bytes() == expected
    assert "was damaged in DVC's cache, and is repaired" in caplog.text
    [aside] = DAMAGED.iterdir()
    assert aside.read_bytes() == spoilt  # nothing is deleted
    assert aside.name == damaged.parent.name + damaged.name
    assert [finding.found for finding in check_leftovers() if finding.check == "damaged"] == [
        "1 objects of DVC's cache were not what they say"
    ]
    assert oct(damaged.stat().st_mode)[-3:] == "444"
    assert graph.graph_status().changed(STAGES) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["file", "listing"])
def test_a_damaged_object_that_no_place_has_is_reported_and_the_cure_makes_it_again(repository, mode, which):
    expected, lock = (SFT / "content.txt").read_bytes(), lock_file()
    md5 = stages.output_hashes("sft")["models/sft"]
    _, spoilt = flip_sft(mode, which)
    shutil.rmtree(SFT)
    message = (
        r"(content\.txt of )?models/sft is damaged in DVC's cache \(what was there is (\S+) now\): delete models/sft"
    )
    with pytest.raises(DamagedError, match=message) as seen:
        materialise(md5, Path("elsewhere"))
    found = re.search(message, str(seen.value))
    assert found
    assert Path(found[2]).read_bytes() == spoilt
    assert not Path("elsewhere").exists()
    with pytest.raises(NotCachedError):  # once it is aside
        materialise(md5, Path("elsewhere"))
    assert repro("sft") == ["sft"]
    materialise(md5, Path("elsewhere"))
    assert Path("elsewhere/content.txt").read_bytes() == expected
    assert lock_file() == lock


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["models/sft/content.txt", "data/validate/demonstrations.jsonl", "data/reward_check/passed.json"]
)
def test_a_file_that_a_stage_is_about_to_read_is_repaired_though_dvc_sees_no_change(repository, caplog, path):
    file = Path(path)
    expected = file.read_bytes()
    assert graph.graph_status().changed(STAGES) == []  # DVC gets to know all files here
    flip(file)
    spoilt = file.read_bytes()
    assert graph.graph_status().changed(STAGES) == []
    check_inputs("ppo")
    assert [aside.read_bytes() for aside in DAMAGED.iterdir()] == [spoilt]
    damaged = path if path.endswith("passed.json") else f"{file.name} of {file.parent}"
    assert caplog.messages == [f"{damaged} was damaged, and is as the record says again"]
    assert file.read_bytes() == expected
    assert graph.graph_status().changed(STAGES) == []
    check_inputs("ppo")
    assert len(caplog.messages) == 1


@pytest.mark.slow
@pytest.mark.parametrize("link", ["copy", "symlink"])
def test_a_stage_does_not_read_what_its_cache_object_spoilt_and_the_next_run_makes_it_again(repository, link):
    expected, lock = (SFT / "content.txt").read_bytes(), lock_file()
    dvc("config", "cache.type", link, cwd=repository)
    dvc("checkout", "--relink", "-q", cwd=repository)
    flip_sft(0o444, "file")
    if link == "copy":
        shutil.rmtree(SFT)
        dvc("checkout", "-q", "sft", cwd=repository)
    assert (SFT / "content.txt").read_bytes() != expected
    assert graph.graph_status().changed(STAGES) == []
    with pytest.raises(
        DamagedError, match=r"content\.txt of models/sft is damaged \(its md5 is .*\): run trueline run, which"
    ):
        check_inputs("reward")
    assert repro("sft") == ["sft"]
    assert (SFT / "content.txt").read_bytes() == expected
    assert lock_file() == lock
    check_inputs("reward")


def test_what_people_changed_themselves_is_theirs(repository):
    (SFT / "content.txt").write_text("made by hand")
    check_inputs("reward")
    assert (SFT / "content.txt").read_text() == "made by hand"


def test_a_source_that_no_stage_makes_is_reported(repository):
    check_inputs("evaluate")  # DVC gets to know it
    flip(Path("figures.json"), place=3)
    with pytest.raises(
        DamagedError, match=r"figures\.json is damaged \(its md5 is .*\): bring it back from where it came"
    ):
        check_inputs("evaluate")


@pytest.mark.slow
def test_what_the_flow_takes_from_the_cache_is_hashed_and_made_again(repository, capfd, monkeypatch):
    monkeypatch.setattr(reproducing, "headline_figure", lambda _stage: "")
    expected, lock = (SFT / "content.txt").read_bytes(), lock_file()
    flip_sft(0o444, "file")
    shutil.rmtree(SFT)
    assert reproduce("sft").outcome == "ran"
    assert "Stage 'sft' is cached" in capfd.readouterr().err  # and was not what it says
    assert (SFT / "content.txt").read_bytes() == expected
    assert lock_file() == lock


@pytest.mark.parametrize("mode", MODES)
def test_a_failing_stage_tells_of_an_earlier_output_that_is_damaged(repository, caplog, mode):
    flip_sft(mode, "file")
    for path in (SFT, Path("curves/sft.csv")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    restore_outputs("sft")
    message = (
        r"content\.txt of models/sft is damaged .*: run trueline run"
        if mode == 0o444
        else "content.txt of models/sft is damaged in DVC's"
    )
    assert re.search(message, caplog.text)
    assert Path("curves/sft.csv").exists()


@pytest.mark.slow
def test_no_damaged_weights_become_champion(tracked, caplog):
    """The registry's copies are hard links: where the object has a flipped bit, they have it."""
    ppo, params = Path("models/ppo"), load_params()
    champion.promote(params)
    first = past_decisions()[0]["policy"]["md5"]
    run_again(content=2)
    expected = (ppo / "content.txt").read_bytes()
    champion.register(params)
    flip(listed("align", ppo)[1]["content.txt"])
    shutil.rmtree(ppo)
    with pytest.raises(DamagedError, match=r"content\.txt of trueline-policy version 2 is damaged in"):
        champion.promote(params)
    assert [decision["action"] for decision in past_decisions()] == ["promote"]
    assert aliases()["trueline-policy"]["champion"] == 1
    repro("align")
    assert champion.promote(params)["promoted"]
    assert expected in [file.read_bytes() for file in tracked.glob("mlruns/**/model/content.txt")]

    flip(listed("align", ppo)[1]["content.txt"])  # the working folder has it intact
    export(params, "champion", Path("exported"))
    assert Path("exported/content.txt").read_bytes() == expected

    flip(cached(json.loads(cached(first).read_text())[0]["md5"]))
    with pytest.raises(
        DamagedError,
        match=r"content\.txt of trueline-policy version 1 is damaged in DVC.*: run dvc fetch",
    ):
        champion.rollback(params, "it flatters")
    assert len(past_decisions()) == 2
    assert aliases()["trueline-policy"]["champion"] == 2


def test_nobody_talks_to_a_damaged_model(challenged, caplog):
    folder = version_folder("champion", load_params())
    expected = (folder / "content.txt").read_bytes()
    flip(folder / "content.txt")
    assert (version_folder("champion", load_params()) / "content.txt").read_bytes() == expected
    assert "it is restored from DVC's cache again" in caplog.text
    expected = (SFT / "content.txt").read_bytes()
    assert graph.graph_status().changed(STAGES) == []
    flip(SFT / "content.txt")
    assert (stage_folder("sft") / "content.txt").read_bytes() == expected


def test_answers_are_collected_from_and_scored_by_models_on_record_alone(challenged):
    params = load_params()
    assert _policy("sft", params).md5 == stages.output_hash("sft", SFT)
    flip(SFT / "content.txt")
    _policy("sft", params)  # from a copy that is intact
    (SFT / "content.txt").unlink()
    (SFT / "content.txt").write_text("other weights")
    for use in (partial(_policy, "sft"), partial(_labeller, by=Named())):
        with pytest.raises(
            InputError, match=r"^models/sft was changed \(its md5 is \w+\.dir, on .*\): run trueline run"
        ):
            use(params=params)
