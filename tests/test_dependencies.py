"""Every import is declared in pyproject.toml, every declaration is used, and the lock files follow from them."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OWN = ("flows", "tasks", "tests", "benchmarks", "infra")
RUN = ("flows", "tasks", "infra")  # what a user runs
# Installed in a few environments only, so the metadata of what is installed cannot name it.
NOT_INSTALLED = {
    "boto3": {"boto3"},
    "botocore": {"boto3"},  # which asks for one version of it
    "psycopg2": {"psycopg2-binary"},
    "pynvml": {"nvidia-ml-py"},
}
# In the build for CUDA, torch brings these, in versions that its own metadata names.
OF_CUDA = re.compile("nvidia-|cuda-|triton$")
# The lock files are made with this Python, which some packages ask for more.
LOCKED_WITH = {"python_version": "3.11", "python_full_version": "3.11.14"}


@cache
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def requirements(*extras: str) -> list[Requirement]:
    """The requirements of a run, and of extras."""
    lines = project()["dependencies"] + [line for extra in extras for line in project()["optional-dependencies"][extra]]
    return list(map(Requirement, lines))


def names(found: Iterable[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in found}


def imports(folders: Iterable[str]) -> dict[str, str]:
    """The first part of every absolute import, each with a file that has it."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return {name: str(file.relative_to(ROOT)) for file in files for name in imported(file.read_text(encoding="utf-8"))}


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


@cache
def installed() -> dict[str, set[str]]:
    """The distributions that bring each importable name, by their canonical names."""
    found = {name: {str(canonicalize_name(each)) for each in by} for name, by in packages_distributions().items()}
    return found | NOT_INSTALLED


def undeclared(found: dict[str, str], declared: set[str]) -> dict[str, str]:
    """Imports that no declared distribution brings."""
    foreign = {name: file for name, file in found.items() if name not in sys.stdlib_module_names and name not in OWN}
    return {name: file for name, file in foreign.items() if not installed().get(name, set()) & declared}


def lock(name: str) -> dict[str, str]:
    """The version of each distribution in a lock file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    pins = [line.split("==") for line in text.splitlines() if not line.startswith("#")]
    return {canonicalize_name(distribution_name): version for distribution_name, version in pins}


def needed_by(roots: Iterable[Requirement]) -> set[str]:
    """What the roots need, with what that needs in turn, by the metadata of what is installed."""
    needed: set[tuple[str, str]] = set()
    waiting = list(roots)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in needed or OF_CUDA.match(name):
                continue
            needed.add((name, extra))
            further = map(Requirement, distribution(name).requires or [])
            waiting += [
                each for each in further if not each.marker or each.marker.evaluate(LOCKED_WITH | {"extra": extra})
            ]
    return {name for name, _ in needed}


def test_every_import_of_a_run_is_declared() -> None:
    assert undeclared(imports(["flows", "tasks"]), names(requirements("nvidia", "production", "quantize"))) == {}
    assert undeclared(imports(["infra"]), names(requirements("production", "services"))) == {}


@pytest.mark.slow
def test_every_import_of_tests_and_benchmarks_is_declared() -> None:
    assert undeclared(imports(OWN), names(requirements("nvidia", "dev", "production", "services"))) == {}


def test_an_import_that_is_not_declared_is_found() -> None:
    found = dict.fromkeys(
        imported("import os\nimport yaml.nodes\nfrom torch.nn import Linear\nfrom . import x"), "a.py"
    )

    assert undeclared(found, {"torch"}) == {"yaml": "a.py"}


def test_every_dependency_of_a_run_is_imported_or_says_why() -> None:
    used = {name for top in imports(RUN) for name in installed().get(top, ())}
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    with_reason = {
        canonicalize_name(found[1]) for line in lines if (found := re.match(r' +"([\w-]+)[^"]*", # \w', line))
    }

    assert names(requirements()) - used - with_reason == set()


@pytest.mark.parametrize("extra", ["", "dev", "production", "services"])
def test_the_lock_files_satisfy_pyproject(extra: str) -> None:
    pinned = lock("requirements.lock") | (lock(f"requirements-{extra}.lock") if extra else {})
    for requirement in requirements(*filter(None, [extra])):
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_a_run_installs_what_it_needs_and_nothing_else() -> None:
    assert set(lock("requirements.lock")) == needed_by(requirements())


def test_the_second_lock_file_adds_what_only_developers_need() -> None:
    assert set(lock("requirements-dev.lock")) == needed_by(requirements("dev")) - needed_by(requirements())


def test_no_two_lock_files_name_the_same() -> None:
    named = [name for extra in ("", "-dev", "-production", "-services") for name in lock(f"requirements{extra}.lock")]

    assert len(named) == len(set(named))
