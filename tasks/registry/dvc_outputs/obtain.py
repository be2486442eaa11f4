"""Having a content on this machine: from DVC's cache, else the working folder, else DVC's default remote."""

from contextlib import suppress
from typing import TYPE_CHECKING

from tasks.registry.dvc_outputs.cache import (
    FOLDER,
    NotCachedError,
    is_intact,
    listed,
    secure,
    take_from_working_folder,
)
from tasks.registry.dvc_outputs.remote import asked, bring, default_remote
from tasks.registry.dvc_outputs.stages import repository

if TYPE_CHECKING:
    from dvc.repo import Repo


def obtain(md5: str, what: str) -> None:
    """Have DVC's cache hold a content, intact: what it lacks comes from the working folder or from the default remote.

    Args:
        md5: the hash as dvc.lock has it.
        what: what a sentence calls it.

    Raises:
        NotCachedError: none of the three has it.
        RemoteError: it is not on this machine, and the remote cannot be asked.
        DamagedError: it is damaged, and no other place has it.
    """
    with repository(wait=True) as repo:
        with suppress(NotCachedError):
            secure(repo, md5, what)
            return
        _take(repo, md5)
        with suppress(NotCachedError):
            secure(repo, md5, what)
            return
        remote = default_remote()
        if remote is None:
            raise NotCachedError(_nowhere(what, md5), "DVC has no default remote; run dvc push where it was made")
        with asked(repo):
            bring(repo, [md5])
        try:
            secure(repo, md5, what)
        except NotCachedError:
            cure = f"DVC's remote {remote} lacks it too; run dvc push where it was made"
            raise NotCachedError(_nowhere(what, md5), cure) from None


def _take(repo: "Repo", md5: str) -> None:
    if is_intact(repo, md5) is None:
        take_from_working_folder(repo, md5)
    if md5.endswith(FOLDER) and is_intact(repo, md5):
        for oid in set(listed(repo, md5).values()):
            if is_intact(repo, oid) is None:
                take_from_working_folder(repo, oid)


def _nowhere(what: str, md5: str) -> str:
    return f"{what} ({md5}) is neither in DVC's cache nor in the working folder"
