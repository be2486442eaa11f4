"""What a run needs around it is reported before the work: git, real folders, disks with room that may be written."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.checks import preflight, surroundings
from flows.inspection import doctor
from flows.stages.reproduce import reproduce
from tasks.common import output_folders
from tasks.common.errors import InputError
from tasks.registry.dvc_outputs.graph import GraphStatus, graph_status, places
from tasks.settings.params import NO_ROWS, Params, load_params
from tests.conftest import EXAMPLE
from tests.flows.conftest import dvc

ROOT = Path(__file__).parents[3]
GIGABYTE = 2**30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the project's own graph, in which nothing has run."""
    folder = tmp_path_factory.mktemp("made") / "checkout"
    rows = (EXAMPLE, "infra/example/rewards.py", NO_ROWS)
    for name in ("params.yaml", "dvc.yaml", "exclude.txt", "opponent.json", *rows):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "tasks", folder / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    before = Path.cwd()
    os.chdir(folder)
    dvc("init", "-q")
    os.chdir(before)
    return folder


@pytest.fixture
def checkout(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "checkout"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


def look() -> None:
    """All but the room, which takes a second."""
    surroundings.check_git()
    surroundings.check_locations()


def refused() -> str:
    with pytest.raises(InputError) as refused:
        look()
    return str(refused.value)


@pytest.mark.slow
def test_all_is_well(checkout: Path) -> None:
    preflight.preflight()
    found = [*doctor.check_repositories(), *doctor.check_disk()]
    assert [finding.check for finding in found if finding.level == "fail"] == []
    assert {path.name for path in checkout.iterdir()} == {
        *(".dvc", ".dvcignore", ".git", "dvc.yaml", "exclude.txt", "infra", "opponent.json", "params.yaml", "tasks"),
    }  # nothing is left of what was tried


@pytest.mark.parametrize("spoil", [lambda: shutil.rmtree(".git"), lambda: Path("models").symlink_to("missing")])
def test_run_and_doctor_say_the_same(checkout: Path, spoil: Callable[[], None]) -> None:
    spoil()
    with pytest.raises(InputError) as refused:
        preflight.preflight()
    found = [*doctor.check_repositories(), *doctor.check_disk()]
    assert str(refused.value) in [f"{finding.found}: {finding.cure}" for finding in found if finding.level == "fail"]


# --- Repositories


def test_without_git_the_cure_works(checkout: Path) -> None:
    shutil.rmtree(".git")
    assert refused() == (
        f"{checkout} is in no git repository, which DVC needs: run git init there, and commit (runs name the commit)"
    )
    subprocess.run(["git", "init", "-q"], check=True)
    look()


def test_a_git_folder_with_nothing_in_it_is_no_repository(checkout: Path) -> None:
    shutil.rmtree(".git")
    Path(".git").mkdir()
    assert refused().startswith(f"{checkout} is in no git repository")


COMMIT = "git -c user.name=A -c user.email=a@example.org commit -q --allow-empty -m work"


@pytest.mark.parametrize(
    ("commit", "variable", "value", "found", "cure"),
    [
        (COMMIT, "GIT_TEST_ASSUME_DIFFERENT_OWNER", "0", None, None),
        (COMMIT, "GIT_TEST_ASSUME_DIFFERENT_OWNER", "1", "dubious ownership", "git config --global --add safe.dir"),
        (COMMIT, "PATH", "/nowhere", "git is not installed", "install git"),
        (COMMIT, "GIT_CONFIG_PARAMETERS", "broken", "git cannot read the commit", "repair the repository"),
        ("git status", "LC_ALL", "C", "nothing is committed", "commit the code"),
    ],
)
def test_a_commit_that_runs_cannot_name_is_said_once_and_stops_nothing(
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    commit: str,
    variable: str,
    value: str,
    found: str | None,
    cure: str | None,
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    subprocess.run(commit.split(), check=True, capture_output=True)
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(surroundings, "graph_status", lambda: GraphStatus({}, {}))
    surroundings._warn.cache_clear()
    for _ in range(2):
        surroundings.check_environment(load_params())
    findings = [finding for finding in doctor.check_repositories() if finding.check == "git"]
    if found is None or cure is None:
        assert (caplog.messages, findings) == ([], [])
        return
    [message], [finding] = caplog.messages, findings
    assert found in message
    assert cure in message
    assert message == f"{finding.found}: {finding.cure}"


def test_a_folder_of_a_larger_repository_is_in_it(checkout: Path) -> None:
    shutil.move(".git", checkout.parent / ".git")
    look()


def test_dvc_may_be_set_to_do_without_git(checkout: Path) -> None:
    shutil.rmtree(".git")
    Path(".dvc/config").write_text("[core]\n    no_scm = True\n")
    look()


def test_without_dvc(checkout: Path) -> None:
    shutil.rmtree(".dvc")
    assert refused().endswith("is not the root of a DVC repository: bring .dvc back (git checkout .dvc)")
    Path("dvc.yaml").unlink()
    assert refused().endswith("is not the root of a DVC repository: run from the folder that holds dvc.yaml")


# --- Links


@pytest.mark.parametrize(
    ("link", "target"),
    [("models", "elsewhere"), ("data", "missing"), ("models/base", "elsewhere"), ("metrics/base.json", "missing")],
)
def test_an_output_folder_that_is_a_link(checkout: Path, tmp_path: Path, link: str, target: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    Path(link).parent.mkdir(exist_ok=True)
    Path(link).symlink_to(tmp_path / target)
    assert refused().startswith(
        f"{link} is a link to {tmp_path / target}, where DVC stores no outputs: make it a folder"
    )
    Path(link).unlink()
    look()


def test_the_cache_may_be_a_link_or_lie_elsewhere(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    Path(".dvc/cache").symlink_to(tmp_path / "large")
    look()
    dvc("cache", "dir", "--local", str(tmp_path / "other"))  # as the sentences advise
    look()
    assert places().cache.is_relative_to(tmp_path / "other")


def test_a_file_where_a_folder_is_needed(checkout: Path) -> None:
    Path("models").touch()
    assert refused() == "models is a file where a folder is needed: move it away"


# --- Disks


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> dict[Path, int]:
    """Folders that answer a write with an error of the system, by its number: any user, and root too, meets it."""
    folders: dict[Path, int] = {}
    opened = tempfile.TemporaryFile

    def temporary(dir: Path) -> object:
        number = next((each for folder, each in folders.items() if dir.resolve() == folder.resolve()), None)
        if number is not None:
            raise OSError(number, os.strerror(number))
        return opened(dir=dir)

    monkeypatch.setattr("tempfile.TemporaryFile", temporary)
    return folders


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (errno.ENOSPC, "is on a full disk: free some of it, or"),
        (errno.EDQUOT, "is on a full disk: free some of it, or"),
        (errno.EROFS, "is on a read-only disk: mount it for writing, or"),
        (errno.EACCES, "is not writable for you: grant permission, run as its owner, or"),
        (errno.EIO, "cannot be written to (Input/output error): fix that, or"),
    ],
)
def test_a_place_that_cannot_be_written(checkout: Path, unwritable: dict[Path, int], number: int, fault: str) -> None:
    unwritable[checkout] = number
    with pytest.raises(InputError) as refused:
        output_folders.check_output_folders()
    assert str(refused.value) == f"the checkout {checkout} {fault} move it"


@pytest.mark.slow
def test_every_place_is_tried(
    checkout: Path, tmp_path: Path, unwritable: dict[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    dvc("config", "--local", "core.site_cache_dir", str(tmp_path / "notes"))
    dvc("cache", "dir", "--local", str(tmp_path / "cache"))
    known = places()
    for folder in (
        tmp_path / "cache",
        tmp_path / "notes",
        tmp_path / "prefect",
        checkout / "models",
        checkout / ".trueline",
    ):
        folder.mkdir(exist_ok=True)
    temporary = Path(tempfile.gettempdir())
    for folder, message in {
        tmp_path / "cache": f"DVC's cache {known.cache} is on a full disk: free some of it, or name another (dvc cache",
        known.own: f"the folder of DVC's own notes {known.own} is on a full disk",
        checkout / "models": f"the folder {checkout / 'models'} is on a full disk",
        checkout / ".trueline": f"the folder {checkout / '.trueline'} is on a full disk",
        checkout / ".dvc": f"the folder {checkout / '.dvc'} is on a full disk",
        tmp_path / "prefect": f"the home of Prefect {tmp_path / 'prefect'} is on a full disk: free some of it, or name",
        temporary: f"the folder of temporary files {temporary} is on a full disk: free some of it, or name",
    }.items():
        unwritable.clear()
        unwritable[folder] = errno.ENOSPC
        with pytest.raises(InputError) as refused:
            surroundings.check_locations()
        assert str(refused.value).startswith(message)


def test_a_place_that_dvc_cannot_make(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/var/tmp/dvc")

    monkeypatch.setattr(surroundings, "places", closed)
    assert refused().endswith("no permission for /var/tmp/dvc: grant it or run as its owner")


# --- Disks that are really so (a mount needs root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True, capture_output=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def may_mount() -> bool:
    """Whether this user of this machine may mount; the same is tested by hand above."""
    tried = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(tried, check=False, capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(not may_mount(), reason="needs the right to mount; the like is tested without")


@needs_mount
def test_a_cache_on_a_disk_that_is_full_or_may_only_be_read(checkout: Path, small_disk: Path) -> None:
    dvc("cache", "dir", "--local", str(small_disk / "cache"))
    with pytest.raises(OSError, match="No space"), (small_disk / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert "is on a full disk: free some of it, or name another (dvc cache dir --local FOLDER)" in refused()
    (small_disk / "fill").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert "is on a read-only disk: mount it for writing, or name another (dvc cache" in refused()


@pytest.mark.slow
@needs_mount
def test_a_cache_that_is_full_by_the_end_of_a_stage(checkout: Path, small_disk: Path) -> None:
    Path("dvc.yaml").write_text("stages: {large: {cmd: head -c 3000000 /dev/urandom > large, outs: [large]}}\n")
    dvc("cache", "dir", "--local", str(small_disk / "cache"))
    with pytest.raises(InputError, match=r"^large: DVC's cache .* is on a full disk: free some of it, or name another"):
        reproduce("large")


@needs_mount
def test_an_output_that_is_a_disk_cannot_be_replaced(checkout: Path) -> None:
    place = checkout / "models/base"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True)
    try:
        assert refused() == "models/base is a disk of its own, which cannot be replaced: mount it elsewhere"
    finally:
        subprocess.run(["umount", str(place)], check=True)


# --- Room


@pytest.fixture
def large(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A base model of 4 GiB in half precision: 8 GiB when it has been trained."""
    folder = Path("large")
    folder.mkdir()
    (folder / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(4 * GIGABYTE)  # a hole: it takes no room
    params = load_params()
    runtime = params.runtime.model_copy(update={"checkpoint_every": 50, "max_checkpoints": 2})
    return params.model_copy(
        update={"base": params.base.model_copy(update={"source": "large"}), "runtime": runtime, "align": aligned("dpo")}
    )


def aligned(method: str) -> object:
    return load_params().align.model_copy(update={"method": method, "stage": method})


def test_room_is_that_of_models_twice_and_of_checkpoints(
    checkout: Path, large: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, pending = places(), ["base", "sft", "reward", "held_out_reward", "align", "gate"]
    # Five models of 8 GiB in the checkout and in the cache, and three checkpoints of weights and two moments of each:
    # 40 + 0.25 + 40 + 3 * 24 = 152.25 GiB, all on one disk.
    free = int(152.25 * GIGABYTE)
    monkeypatch.setattr(surroundings, "free_bytes", lambda _folder: free)
    surroundings.check_room(large, known, pending)
    monkeypatch.setattr(surroundings, "free_bytes", lambda _folder: free - 1)
    message = (
        f"^the disk of the checkout {checkout} has 152.2 GB free, and this run will write about 152.2 GB there: free"
    )
    with pytest.raises(InputError, match=message):
        surroundings.check_room(large, known, pending)


def test_an_ensemble_takes_room_for_every_member(
    checkout: Path, large: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "free_bytes", lambda _folder: 0)
    three = large.model_copy(update={"reward": large.reward.model_copy(update={"ensemble": 3})})
    # Three models of 8 GiB in checkout and cache, and of each three checkpoints: 24 + 0.25 + 24 + 3 * 3 * 24 GiB.
    with pytest.raises(InputError, match=r"about 264\.2 GB there"):
        surroundings.check_room(three, places(), ["reward"])


def test_adapters_leave_small_checkpoints_and_ppo_two_learners(
    checkout: Path, large: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "free_bytes", lambda _folder: 0)

    def wanted(params: Params) -> str:
        with pytest.raises(InputError) as refused:
            surroundings.check_room(params, places(), ["align"])
        return str(refused.value).split("about ")[1].split(" there")[0]

    # A model in the checkout and in the cache, and 3 * 24 of checkpoints: 16.25 + 72; of PPO with a critic of its own,
    # 16.25 + 144.
    assert wanted(large) == "88.2 GB"
    assert wanted(large.model_copy(update={"align": aligned("ppo")})) == "160.2 GB"
    adapters = large.model_copy(update={"lora": large.lora.model_copy(update={"rank": 8})})
    assert wanted(adapters) == "16.2 GB"
    Path("models/dpo").mkdir(parents=True)  # whose place the new one takes
    assert wanted(adapters) == "8.2 GB"


def test_where_nothing_is_to_do_no_room_is_needed(
    checkout: Path, large: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "free_bytes", lambda _folder: 0)
    surroundings.check_room(large, places(), [])


@pytest.mark.slow
@needs_mount
def test_a_disk_that_is_too_small_is_reported_by_its_own_size(
    checkout: Path, large: Params, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dvc("cache", "dir", "--local", str(small_disk))
    measured = surroundings.free_bytes
    # The machine's own disk may have less than the 40 GB that the checkout would need.
    monkeypatch.setattr(
        surroundings, "free_bytes", lambda folder: measured(folder) if folder.is_relative_to(small_disk) else 10**15
    )
    with pytest.raises(
        InputError, match=r"^the disk of DVC's cache /.* has 1\.0 MB free, and this run will write about 40"
    ):
        adapters = large.model_copy(update={"lora": large.lora.model_copy(update={"rank": 8})})
        surroundings.check_room(adapters, places(), graph_status().unfinished)
