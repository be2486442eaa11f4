"""Checks before anything runs: settings, sources, and the environment."""

from pathlib import Path

from flows.checks.surroundings import check_environment
from tasks.common.errors import InputError
from tasks.data.base_model.model_files import check_model_folder
from tasks.data.records import TYPES
from tasks.data.sources.source import check_file, files_of
from tasks.registry.dvc_outputs.graph import GraphStatus
from tasks.registry.promotion.decisions import past_decisions
from tasks.rewards.sources import check_verifiers
from tasks.settings.params import Params, load_params


def preflight() -> tuple[Params, GraphStatus]:
    """Check settings, sources and surroundings; give the settings, and what DVC says of the stages.

    Raises:
        InputError: a setting is wrong, the record of decisions is damaged, a source does not exist or is none that DVC
            can follow, or the checkout or its disk is not fit for a run.
    """
    params = load_params()
    check_verifiers(params.rewards)
    past_decisions()  # before hours of work end at a damaged record
    for key, source in sources(params).items():
        check_exists(key, source)
        check_file(Path(source))  # before DVC, which would wait for a pipe
    check_model_folder(Path(params.base.source))
    for kind in TYPES:
        for file in files_of(getattr(params.prepare, kind)).values():
            check_file(Path(file.source))
    return params, check_environment(params)


def sources(params: Params) -> dict[str, str]:
    """Give everything the pipeline reads from outside, by the setting that names it."""
    settings = params.prepare
    return {
        "base.source": params.base.source,
        **{f"prepare.{kind}.source": getattr(settings, kind).source for kind in TYPES},
        "prepare.data": settings.data,
        "prepare.exclude": settings.exclude,
        "rewards.code": params.rewards.code,
        "rewards.data": params.rewards.data,
    }


def check_exists(key: str, source: str) -> None:
    """Make sure that a source is there; what is in it is for its stage to check.

    Raises:
        InputError: there is nothing at that path.
    """
    try:
        fault = None if Path(source).exists() else "does not exist"
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        fault = f"cannot be reached ({error.strerror})"
    if fault:
        raise InputError(f"params.yaml: {key} is {source}, which {fault}: trueline configure {key}=PATH fixes it")
