"""The versions that aliases lead to, and the folders of their weights."""

import logging
from pathlib import Path
from typing import NamedTuple

from tasks.common.errors import InputError
from tasks.common.files import STATE, read_json, write_json
from tasks.registry.dvc_outputs.cache import DamagedError, NotCachedError, materialise
from tasks.registry.dvc_outputs.contents import check_folder
from tasks.registry.dvc_outputs.obtain import obtain
from tasks.registry.mlflow_runs.store import Store, open_store, with_timeout
from tasks.registry.promotion.versions import find_by_alias
from tasks.settings.params import Params

logger = logging.getLogger(__name__)
FOLDER, LAST = STATE / "policies", STATE / "serving.json"


class ServedVersion(NamedTuple):
    """A version of the policy, by what a server needs of it."""

    policy: str  # the registered model
    version: int
    md5: str  # DVC's hash of the weights

    @property
    def name(self) -> str:
        """What clients read: trueline-policy/7."""
        return f"{self.policy}/{self.version}"


class AliasReader:
    """Asks MLflow which version an alias leads to, again and again over one connection, and saves what it says."""

    def __init__(self, params: Params) -> None:
        """Connect at the first question."""
        self._params = params
        self._store: Store | None = None
        self._last: dict[str, ServedVersion] = {}

    def read(self, alias: str) -> ServedVersion | None:
        """Find the version with an alias; None where no version has it.

        Raises:
            InputError: MLflow cannot be reached; MlflowException, OSError: it fails.
        """
        store = self._store = self._store or open_store(self._params.registry.experiment)
        try:
            found = with_timeout(store.uri, lambda: find_by_alias(store, self._params, alias))
        except Exception:
            self._store = None  # whatever was wrong with it, the next question begins anew
            raise
        if found is None:
            return None
        version = ServedVersion(self._params.registry.policy, found["version"], found["md5"])
        if self._last.get(alias) != version:
            self._last[alias] = version
            write_json(LAST, {name: each._asdict() for name, each in self._last.items()})
        return version

    def last(self, alias: str) -> ServedVersion | None:
        """Give where an alias last led, in an earlier process too; None where it never did."""
        try:
            version = ServedVersion(**read_json(LAST)[alias])
        except (InputError, KeyError, TypeError):
            return None
        return version if version.policy == self._params.registry.policy else None


def weights(md5: str, what: str) -> Path:
    """Give the folder of a version's weights, restored from DVC's cache, or fetched from its default remote.

    Args:
        md5: DVC's hash of the folder.
        what: what a sentence calls it.

    Raises:
        InputError: neither has the weights, they are damaged, or the remote cannot be asked.
    """
    folder = FOLDER / md5
    try:
        if folder.is_dir():
            check_folder(folder, md5)
            return folder
    except DamagedError as error:
        logger.warning("%s: it is restored from DVC's cache again", error)
    try:
        materialise(md5, folder, what=what)
    except NotCachedError:
        obtain(md5, what)
        materialise(md5, folder, what=what)
    return folder
