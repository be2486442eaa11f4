"""No version becomes champion whose weights can be neither found nor fetched."""

import shutil
from pathlib import Path

import pytest

from tasks.common.errors import InputError
from tasks.registry.dvc_outputs import stages
from tasks.registry.dvc_outputs.remote import RemoteError
from tasks.registry.export.folders import export
from tasks.registry.promotion import champion
from tasks.registry.promotion.decisions import past_decisions
from tasks.settings.params import load_params
from tests.registry.conftest import aliases, change_params, dvc

CACHE = Path(".dvc/cache/files/md5")
PPO = Path("models/ppo")


def lose_weights():
    """Leave what a clone has that shares the MLflow server: the record, and no weights."""
    copies = [*Path("mlruns").glob("**/artifacts/model")]
    assert copies
    for place in (CACHE, PPO, *copies):
        shutil.rmtree(place)


def promote():
    return champion.promote(load_params())


def approve():
    return champion.approve(load_params(), "challenger", "Ada", "I read fifty answers.")


def rollback():
    return champion.rollback(load_params(), "it flatters")


@pytest.fixture(params=[promote, approve, rollback], ids=lambda act: act.__name__)
def change_of_champion(request, own):
    """A command that would make another version champion."""
    act = request.param
    if act is rollback:
        promote()
    elif act is approve:
        change_params(registry={"approval": True})
        assert promote()["held"]
    else:
        champion.register(load_params())
    return act


@pytest.mark.slow
def test_without_weights_the_champion_stays_and_with_a_remote_they_are_fetched(change_of_champion):
    dvc("remote", "add", "-d", "store", "../remote", cwd=".")
    dvc("push", "--run-cache", cwd=".")
    if change_of_champion is rollback:
        shutil.copytree(CACHE, "../remote/files/md5", dirs_exist_ok=True)  # of version 1, dvc.lock knows no more
    Path("../remote").rename("../away")
    lose_weights()
    before, decisions = aliases(), past_decisions()
    with pytest.raises(RemoteError, match=r"^DVC's remote store cannot be asked .*: correct its address"):
        change_of_champion()
    Path("../remote").mkdir()
    with pytest.raises(
        InputError,
        match=r"^trueline-policy version \d \(\w+\.dir\) is neither in DVC's cache nor in the working folder: DVC's "
        r"remote store lacks it too; run dvc push where it was made$",
    ):
        change_of_champion()
    dvc("remote", "remove", "store", cwd=".")
    with pytest.raises(InputError, match=r"DVC has no default remote; run dvc push where it was made$"):
        change_of_champion()
    assert (aliases(), past_decisions()) == (before, decisions)

    Path("../remote").rmdir()
    Path("../away").rename("../remote")
    dvc("remote", "add", "-d", "store", "../remote", cwd=".")
    assert change_of_champion()["promoted"]
    export(load_params(), "champion", Path("exported"))


@pytest.mark.slow
def test_what_the_working_folder_has_comes_back_into_the_cache(own):
    champion.register(load_params())
    shutil.rmtree(CACHE)
    shutil.rmtree("mlruns")
    assert promote()["promoted"]
    md5 = stages.output_hash("align", PPO) or ""
    assert (CACHE / md5[:2] / md5[2:]).exists()
    export(load_params(), "champion", Path("exported"))
    assert Path("exported/content.txt").read_bytes() == (PPO / "content.txt").read_bytes()
