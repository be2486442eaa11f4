"""Sending contents of DVC's cache to its default remote, beside `dvc push`, and what is lacking there."""

from collections.abc import Sequence

from tasks.registry.dvc_outputs.cache import listed
from tasks.registry.dvc_outputs.remote import asked
from tasks.registry.dvc_outputs.stages import recorded_outputs, repository


def send(hashes: Sequence[str]) -> None:
    """Send contents to the default remote, a folder's listing last; what the cache lacks is left out.

    Args:
        hashes: as dvc.lock has them.

    Raises:
        RemoteError: the remote cannot be asked.
    """
    from dvc_data.hashfile.hash_info import HashInfo

    with repository(wait=True) as repo, asked(repo) as remote:
        for md5 in hashes:
            if not remote.odb.exists(md5) and repo.cache.local.exists(md5):
                for names in (set(listed(repo, md5).values()), {md5}):
                    repo.cloud.push([HashInfo("md5", name) for name in names])


def unsent() -> list[str]:
    """Name the outputs in dvc.lock that the default remote lacks.

    Raises:
        RemoteError: the remote cannot be asked.
    """
    with repository(wait=True) as repo, asked(repo) as remote:
        # Of a folder, DVC sends the listing last.
        return [path for path, md5 in recorded_outputs().items() if not remote.odb.exists(md5)]
