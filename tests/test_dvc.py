"""dvc.yaml lists exactly the code that each stage imports: DVC follows no imports, so a missing one is a stale model.

`python -m tests.test_dvc` (make deps) prints what dvc.yaml should list.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from tasks.evaluation.gate.plots import CURVE_COLUMNS, Reliability
from tasks.methods import STAGES as ALIGNING
from tasks.settings.data import NO_ROWS

ROOT = Path(__file__).parents[1]
PIPELINE: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
STAGES = tuple(PIPELINE["stages"])
# What no byte of an output can follow from: a change in them makes no stage stale. They start and watch a stage, refuse
# what it cannot work with, or hand it what DVC hashes itself:
OBSERVERS = (
    "tasks.registry",  # logs runs, and brings back cached files by their hash
    "tasks.stage",  # turns errors into exit codes
    "tasks.settings",  # the schema of params.yaml: the values are parameters of the stages already
    "tasks.common.errors",
    "tasks.common.full_disk",
    "tasks.common.progress",
    "tasks.common.safe_text",
    "tasks.common.yaml_files",  # refuses what two readers of YAML would read differently
)
QUIET = os.environ | {"DVC_NO_ANALYTICS": "1"}
# Read by its module beside it, not imported.
DATA_FILES = {
    # Imported by a verifier: DVC hashes its copy, and not what that imports.
    "tasks.rewards.functions": ["tasks/common/chat_endpoint.py"],
    "tasks.rewards.sources": [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "tasks/rewards/verifiers").glob("*.py"))
        if path.name != "__init__.py"
    ],
    "tasks.data.checks.pages": ["tasks/data/checks/data_docs.html.j2"],
    "tasks.evaluation.gate.report": ["tasks/evaluation/gate/report.html.j2"],
    "tasks.evaluation.llm_judge.comparisons": ["tasks/evaluation/llm_judge/comparison.txt.j2"],
}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return build_graph()


def build_graph() -> grimp.ImportGraph:
    return grimp.build_graph("tasks", cache_dir=None)


def code_of(graph: grimp.ImportGraph, module: str) -> set[str]:
    """The files of a module and of all it imports, observers and what only they import left out."""
    found: set[str] = set()
    waiting = [f"tasks.{module}"]
    while waiting:
        name = waiting.pop()
        if name in found or name.startswith(OBSERVERS):
            continue
        found.add(name)
        waiting += graph.find_modules_directly_imported_by(name)
    data_files = {path for name in found for path in DATA_FILES.get(name, [])}
    return {_file(name) for name in found} | data_files


def _file(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def in_rooms(files: set[str]) -> set[str]:
    """The files as dvc.yaml names them: a room by its folder where the stage uses all of it, else file by file."""
    room_of = {file: room for room, inside in ROOMS.items() if inside <= files for file in inside}
    return {room_of.get(file, file) for file in files}


def rooms() -> dict[str, set[str]]:
    """What lies in each folder of code and below it, by folder, the outer ones last; a docstring alone is no code."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tasks").rglob("*")):
        if path.suffix in (".py", ".j2") and not is_docstring_alone(path):
            name = path.relative_to(ROOT)
            for folder in name.parents[:-2]:  # not tasks, which holds the stages
                found.setdefault(folder.as_posix(), set()).add(name.as_posix())
    return dict(sorted(found.items(), key=lambda room: room[0].count("/"), reverse=True))


def is_docstring_alone(path: Path) -> bool:
    return path.name == "__init__.py" and len(ast.parse(path.read_text(encoding="utf-8")).body) == 1


ROOMS = rooms()


def declared(stage: str) -> set[str]:
    """The code that dvc.yaml lists for a stage; sources that are code are data to it."""
    return {path for path in PIPELINE["stages"][stage]["deps"] if path.startswith("tasks/")}


def wanted(graph: grimp.ImportGraph, stage: str) -> set[str]:
    """What dvc.yaml should list; for align what is named after the method by template, and all that either uses."""
    if stage != "align":
        return in_rooms(code_of(graph, stage))
    used_by_any = set[str]().union(*(code_of(graph, method) for method in ALIGNING))
    named_after_one = rf"/({'|'.join(ALIGNING)})(?=/|\.py|$)"
    return {re.sub(named_after_one, "/${align.stage}", path) for path in in_rooms(used_by_any)}


@pytest.mark.parametrize("stage", STAGES)
def test_code_deps_are_the_import_closure(graph: grimp.ImportGraph, stage: str) -> None:
    assert declared(stage) == wanted(graph, stage), f"paste into dvc.yaml, stage {stage}:\n{as_yaml(graph, stage)}"


def test_every_module_of_a_stage_is_in_the_pipeline(graph: grimp.ImportGraph) -> None:
    modules = {name.removeprefix("tasks.") for name in graph.find_modules_that_directly_import("tasks.stage")}

    assert {"align" if name in ALIGNING else name for name in modules} == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_no_shell_stands_between_dvc_and_a_stage(stage: str) -> None:
    """Killing DVC would end the shell's parent, and leave the stage to the shell: tests/flows/test_kills.py."""
    assert PIPELINE["stages"][stage]["cmd"].startswith("exec ")


@pytest.mark.slow
def test_every_plot_can_be_drawn_and_compared(tmp_path: Path) -> None:
    """A plot whose column has another name is a warning to DVC and an empty picture to people."""
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8").replace("${align.stage}", "ppo")
    pipeline = yaml.safe_load(text)
    drawn = [plot for stage in pipeline["stages"].values() for plot in stage.get("plots", [])] + pipeline["plots"]
    columns = {
        "reports/gate/over_optimisation.csv": CURVE_COLUMNS,
        "reports/gate/reliability.csv": Reliability._fields,
    }
    for path in (path for plot in drawn for path in plot):
        names = columns.get(path, ("step", "loss", "reward"))
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"plots": drawn}))
    git = ("git", "-c", "user.name=T", "-c", "user.email=t@example.org")
    dvc = (sys.executable, "-m", "dvc")
    for command in ((*git, "init", "-q"), (*dvc, "init", "-q"), (*git, "add", "-A"), (*git, "commit", "-qm", "first")):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    for arguments in (("show",), ("diff", "HEAD")):
        done = subprocess.run(
            (*dvc, "plots", *arguments), cwd=tmp_path, check=True, capture_output=True, text=True, env=QUIET
        )
        page = (tmp_path / "dvc_plots/index.html").read_text(encoding="utf-8")
        assert "WARNING" not in done.stderr
        assert page.count("vegaEmbed") == len(drawn) == 6


def as_yaml(graph: grimp.ImportGraph, stage: str) -> str:
    return "\n".join(f"      - {path}" for path in sorted(wanted(graph, stage)))


if __name__ == "__main__":
    whole = build_graph()
    for name in STAGES:
        print(f"  {name}:\n{as_yaml(whole, name)}")


def test_the_source_without_rows_is_a_file_that_dvc_takes_without_a_warning() -> None:
    assert (ROOT / NO_ROWS).read_bytes() == b"\n"  # of a file without a byte DVC warns in every run
