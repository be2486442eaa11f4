"""Servers whose versions are parrots."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tasks.registry.serving.versions import ServedVersion
from tasks.settings.params import Params
from tests.conftest import MakeParams
from tests.flows.serving.running import Aliases, Parrot, Running, running


class Parrots:
    """Loads versions as parrots, but those that are broken."""

    def __init__(self) -> None:
        self.loaded: dict[str, Parrot] = {}
        self.broken: set[str] = set()
        self.times_loaded = 0

    def __call__(self, version: ServedVersion) -> Parrot:
        self.times_loaded += 1
        if version.name in self.broken:
            raise OSError(28, "No space left on device", "weights")
        self.loaded[version.name] = Parrot(version.name)
        return self.loaded[version.name]


Serve = Callable[..., Running]


@pytest.fixture(scope="session")
def params(make_params: MakeParams) -> Params:
    return make_params()


@pytest.fixture
def parrots() -> Parrots:
    return Parrots()


@pytest.fixture
def aliases() -> Aliases:
    return Aliases(champion=1, challenger=2)


@pytest.fixture
def serve(params: Params, parrots: Parrots, aliases: Aliases, tmp_path: Path) -> Iterator[Serve]:
    """Start a server; its thumbs lie in `feedback`."""
    with ExitStack() as servers:

        def start(**options: Any) -> Running:
            return servers.enter_context(running(params, parrots, aliases, tmp_path / "feedback", **options))

        yield start
