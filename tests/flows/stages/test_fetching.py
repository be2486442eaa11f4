"""Results that DVC's remote has are fetched and not computed again; what it has is reported, and a bad remote too."""

import shutil
import subprocess
from pathlib import Path
from threading import Event

import pytest

from flows.stages import fetching
from flows.stages.fetching import Fetching
from flows.stages.walk import Walk
from tasks.registry.dvc_outputs.graph import graph_status
from tasks.registry.dvc_outputs.remote import RemoteError, fetchable
from tests.flows.conftest import dvc

pytestmark = pytest.mark.slow
# A file, a folder that is made of it, and a file of both; each stage leaves a line in `computed`.
STAGES = ["one", "two", "three"]
PIPELINE = """
stages:
  one:
    cmd: echo one >> computed && cp raw.txt one.txt
    deps: [raw.txt]
    outs: [one.txt]
  two:
    cmd: echo two >> computed && mkdir -p two/inner && cp one.txt two/inner/a && echo b > two/b
    deps: [one.txt]
    params: [two]
    outs: [two]
  three:
    cmd: echo three >> computed && cat one.txt two/inner/a > three.txt
    deps: [one.txt, two]
    outs: [three.txt]
"""


@pytest.fixture(params=["by dvc.lock", "by the run cache"])
def clone(repository: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone without results, of a repository whose results are in a remote; it has the dvc.lock of these, or none."""
    Path("dvc.yaml").write_text(PIPELINE)
    Path("params.yaml").write_text("two: 1\n")
    Path(".gitignore").write_text("computed\n.trueline\nremote\nclone\n")
    dvc("repro")
    dvc("remote", "add", "-d", "store", str(repository / "remote"))
    dvc("push", "--run-cache")
    subprocess.run(["git", "add", "-A"], check=True)
    author = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *author, "commit", "-qm", "all"], check=True)
    subprocess.run(["git", "clone", "-q", str(repository), str(repository / "clone")], check=True)
    monkeypatch.chdir(repository / "clone")
    if request.param == "by the run cache":
        Path("dvc.lock").unlink()
    return repository / "clone"


def walk(*, pull: bool | None = None) -> list[str]:
    """Walk along the stages, and tell which were computed."""
    graph = graph_status()
    walk = Walk(graph, Fetching(graph, pull=pull))
    for stage in walk.plan:
        walk.bring_up_to_date(stage)
    return Path("computed").read_text().split() if Path("computed").exists() else []


def test_a_second_clone_computes_nothing(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetchable(STAGES) == STAGES
    assert walk() == []
    assert Path("three.txt").read_text() == "raw\nraw\n"
    assert Path("two/inner/a").read_text() == "raw\n"
    assert Path("dvc.lock").read_bytes() == Path("../dvc.lock").read_bytes()
    assert graph_status().stale == []
    printed = capsys.readouterr()
    assert printed.out == ""  # a command's JSON goes there
    assert printed.err.startswith("trueline: DVC's remote has one, two, three: fetched, not computed again\n")
    assert printed.err.splitlines()[1:] == [f"trueline: {stage} is fetched from DVC's remote" for stage in STAGES]


def test_only_what_the_remote_lacks_is_computed(clone: Path) -> None:
    Path("params.yaml").write_text("two: 2\n")
    assert fetchable(STAGES) == ["one"]  # what `three` will read is not known
    # The new `two` writes the same bytes: so `three` is fetched, though nobody could tell before.
    assert walk() == ["two"]
    assert Path("three.txt").read_text() == "raw\nraw\n"


def test_whoever_wants_to_compute_here_does(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert walk(pull=False) == STAGES
    assert "remote" not in capsys.readouterr().err


def test_what_the_cache_has_is_not_fetched(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dvc("repro")
    shutil.rmtree("two")
    assert fetchable(STAGES) == []
    assert walk() == STAGES  # by the first command of this test
    assert "remote" not in capsys.readouterr().err


def test_where_nothing_is_stale_nothing_is_asked(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dvc("repro")
    monkeypatch.setattr(fetching, "fetchable", lambda _stages: pytest.fail("the remote was asked"))
    Fetching(graph_status())


def test_a_damaged_object_of_the_remote_is_made_again(clone: Path) -> None:
    for found in Path("../remote/files/md5").glob("*/*"):
        if found.read_bytes() == b"b\n":
            found.chmod(0o644)
            found.write_bytes(b"damaged\n")
    assert walk() == ["two"]
    assert Path("two/b").read_text() == "b\n"


def test_a_damaged_entry_of_the_run_cache_is_not_used(clone: Path, caplog: pytest.LogCaptureFixture) -> None:
    for found in Path("../remote/runs").glob("*/*/*"):
        found.write_text("cmd: [")
    if Path("dvc.lock").exists():  # it names the results
        assert fetchable(STAGES) == STAGES
    else:
        assert fetchable(STAGES) == []
        assert "an entry of the run cache for one is damaged, and is not used" in caplog.text


def test_a_remote_that_cannot_be_asked(clone: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree("../remote")
    with pytest.raises(
        RemoteError, match=r"^DVC's remote store cannot be asked \(.*remote is no folder\): correct its"
    ):
        walk(pull=True)
    assert walk() == STAGES
    (warning,) = caplog.messages
    assert "remote is no folder" in warning
    assert "the run goes on without it" in warning


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("    url = http://127.0.0.1:9/dvc\n    auth = basic\n", "require both 'user' and 'password'"),
        ("    url = webdav://127.0.0.1:9/dvc\n", "requires 'dvc-webdav' to be installed"),
    ],
)
def test_a_remote_that_is_set_up_wrong_or_not_installed(clone: Path, options: str, reason: str) -> None:
    Path(".dvc/config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n{options}")
    with pytest.raises(RemoteError, match=rf"^DVC's remote store cannot be asked \(.*{reason}\): correct its address"):
        fetchable(STAGES)


def test_a_remote_that_goes_away_or_hangs(
    clone: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = graph_status()
    taken, demanded = Fetching(graph), Fetching(graph, pull=True)
    Path("../remote").rename("../away")
    assert not taken.fetch("one")
    with pytest.raises(RemoteError, match="cannot be asked"):
        demanded.fetch("one")
    hanging = Event()
    monkeypatch.setattr(fetching, "fetchable", lambda _stages: hanging.wait())
    monkeypatch.setattr(fetching, "ANSWER_SECONDS", 0.1)
    Fetching(graph)
    hanging.set()
    assert "DVC's remote has not answered for 0 seconds; the run goes on without it" in caplog.text


def test_without_a_remote_there_is_nothing_to_fetch_from(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RemoteError, match="DVC has no default remote to fetch from: name one"):
        Fetching(graph_status(), pull=True)
    assert not Fetching(graph_status()).fetch("one")
    assert capsys.readouterr().err == ""
