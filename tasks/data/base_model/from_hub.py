"""A model of the Hugging Face hub at the exact commit that a .yaml file names."""

from pathlib import Path

from pydantic import Field, ValidationError

from tasks.common.errors import InputError
from tasks.common.yaml_files import read_yaml
from tasks.data.base_model.model_files import FETCHED, NOT_FETCHED
from tasks.settings.section import Section


class Pointer(Section):
    """A hub model at an exact commit."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


def read_pointer(path: Path) -> Pointer:
    """Read a .yaml that names a hub model.

    Raises:
        InputError: the file is missing, or does not hold a hub id and a full commit hash.
    """
    cure = "it needs hub: organisation/name and revision: the full commit hash of 40 hexadecimal digits"
    try:
        return Pointer.model_validate(read_yaml(path))
    except FileNotFoundError:
        raise InputError(f"base.source {path} does not exist: write it; {cure}") from None
    except ValidationError:
        raise InputError(f"{path} names no hub model: {cure}") from None


def download(pointer: Pointer) -> Path:
    """Give the folder of the hub's cache that holds a model, downloaded where it was not there.

    Raises:
        InputError: the hub refuses it, or it may not be asked and the cache does not hold it.
        ConnectionError: the hub cannot be reached.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"{pointer.hub} at {pointer.revision}"
    try:
        return Path(
            snapshot_download(
                pointer.hub, revision=pointer.revision, allow_patterns=list(FETCHED), ignore_patterns=list(NOT_FETCHED)
            )
        )
    except LocalEntryNotFoundError:  # neither in the local cache nor reachable
        if constants.HF_HUB_OFFLINE:
            raise InputError(f"{name} is not in the local cache: unset HF_HUB_OFFLINE, or give a folder") from None
        raise ConnectionError(f"the Hugging Face hub cannot be reached for {name}") from None
    except HfHubHTTPError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"the hub refuses {name} ({reason}): fix its name or revision, or log in") from None
