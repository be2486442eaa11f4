"""The candidate: the policy in dvc.lock, and its model record."""

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.common.errors import InputError
from tasks.common.files import AI_VALIDATED, METRICS, MODELS, VALIDATED, read_json
from tasks.common.yaml_files import read_yaml
from tasks.data.checks.validation import VALIDATION
from tasks.data.names import name_in_outputs
from tasks.data.records import TYPES
from tasks.registry.dvc_outputs.cache import materialise
from tasks.registry.dvc_outputs.graph import plan
from tasks.registry.dvc_outputs.stages import (
    lock_key,
    locked_ingredients,
    output_hash,
    output_hashes,
)
from tasks.registry.lineage.redaction import redact_record
from tasks.registry.mlflow_runs.provenance import code_tags
from tasks.settings.params import Params, Source

OPPONENT_FILE = Path("opponent.json")
SFT_OPPONENT: dict[str, Any] = {"name": "sft", "version": None, "policy": None}


def aligned_folder() -> Path | None:
    """Return the folder of the aligned policy in dvc.lock, such as models/ppo; None before the first alignment."""
    folders = [Path(path) for path in output_hashes("align") if Path(path).is_relative_to(MODELS)]
    return folders[0] if folders else None


def model_record(params: Params) -> dict[str, Any]:
    """Return the candidate's model record: everything known about it, as plain data that outlives the working folder.

    Raises:
        InputError: the pipeline has not finished, or its results do not belong together.
    """
    stages = plan()
    check_consistent(stages)
    settings = _params(stages)
    folder, prepared = aligned_folder(), locked_json("prepare", METRICS / "prepare.json")
    assert folder is not None  # dvc.lock is complete
    known = {
        "policy": {"name": params.registry.policy, "path": folder.as_posix(), "md5": output_hash("align", folder)},
        "method": settings["align"]["method"],
        "reward": {"name": params.registry.reward, "md5": output_hash("reward", MODELS / "reward")},
        "sft": {"md5": output_hash("sft", MODELS / "sft")},
        "base": {"source": params.base.source, "md5": output_hash("base", MODELS / "base")},
        "data": {
            "md5": output_hash("validate", VALIDATED),
            "ai_preferences": output_hash("validate", AI_VALIDATED),
            "prepare": prepared,
            "validate": locked_json("validate", VALIDATION),
        },
        "hub": _hub_sources(params, prepared),
        # Without entries by annotator and by category: a tag in MLflow has at most 100,000 characters.
        "figures": {
            "base": locked_json("base", METRICS / "base.json"),
            "reward": _without(locked_json("reward", METRICS / "reward.json"), "accuracy_by_annotator"),
            "evaluate": _without(locked_json("evaluate", METRICS / "evaluate.json"), "categories"),
        },
        "gate": locked_json("gate", METRICS / "gate.json"),
        "opponent": gate_opponent(),
        "params": settings,
        "keys": {stage: lock_key(stage) for stage in stages},
        **code_tags(),
    }
    return redact_record(known)


def check_consistent(stages: list[str]) -> None:
    """Check that each stage, in running order, ran on the outputs of the stages before it.

    Raises:
        InputError: a stage has never run, or ran on other inputs.
    """
    written: dict[str, str] = {}
    for stage in stages:
        ingredients = locked_ingredients(stage)
        if ingredients is None:
            raise InputError(f"dvc.lock has no stage {stage}: run dvc repro or trueline run")
        for path, md5 in ingredients.dependencies.items():
            if written.get(path, md5) != md5:
                raise InputError(f"{stage} ran on another {path} than the one in dvc.lock: run dvc repro")
        written |= output_hashes(stage)


def gate_opponent() -> dict[str, Any]:
    """Return the opponent that the gate compared the candidate with.

    Raises:
        InputError: opponent.json has changed since then.
    """
    ingredients = locked_ingredients("gate")
    if ingredients is None or not OPPONENT_FILE.exists():
        raise InputError(f"the gate has not compared with any {OPPONENT_FILE}: run dvc repro or trueline run")
    if _md5(OPPONENT_FILE) != ingredients.dependencies[OPPONENT_FILE.as_posix()]:
        raise InputError(f"{OPPONENT_FILE} has changed since the gate compared with it: run dvc repro")
    return read_json(OPPONENT_FILE)


def locked_json(stage: str, path: Path) -> dict[str, Any]:
    """Read a stage's JSON output as in dvc.lock, even if the file has changed since.

    Raises:
        InputError: the stage has never run, or neither the working folder nor DVC's cache has that content.
    """
    md5 = output_hash(stage, path)
    if md5 is None:
        raise InputError(f"dvc.lock has no {path}: run dvc repro or trueline run")
    if path.exists() and _md5(path) == md5:
        return read_json(path)
    with tempfile.TemporaryDirectory() as folder:
        materialise(md5, Path(folder, path.name))
        return read_json(Path(folder, path.name))


def _hub_sources(params: Params, prepared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hub repository and revision behind each source that names one, as of the time it was read."""
    found: dict[str, Any] = {}
    ingredients, pointer = locked_ingredients("base"), Path(params.base.source)
    is_pointer = pointer.suffix in (".yaml", ".yml") and pointer.is_file()
    if is_pointer and ingredients and _md5(pointer) == ingredients.dependencies.get(params.base.source):
        found[params.base.source] = read_yaml(pointer)
    for kind in TYPES:
        source: Source = getattr(params.prepare, kind)
        own_name = name_in_outputs(source.source)
        for name, read in prepared.get(kind, {}).get("sources", {}).items():  # earlier releases had none
            if "hub" in read:
                found[source.source if name == own_name else name] = read
    return {source: {name: known[name] for name in ("hub", "revision")} for source, known in sorted(found.items())}


def _without(figures: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if key != name}


def _params(stages: list[str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for stage in stages:
        ingredients = locked_ingredients(stage)
        for sections in ingredients.params.values() if ingredients else ():
            merged |= sections
    return merged


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
