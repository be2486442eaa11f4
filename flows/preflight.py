"""What can be told before anything runs: settings that hold and sources that exist."""

from pathlib import Path

from tasks.errors import InputError
from tasks.params import Params, load_params


def preflight() -> Params:
    """Check settings and sources, and give the settings.

    Raises:
        InputError: a setting is wrong, or a source does not exist.
    """
    params = load_params()
    for key, source in sources(params).items():
        check_exists(key, source)
    return params


def sources(params: Params) -> dict[str, str]:
    """Give everything the pipeline reads from outside, by the setting that names it."""
    settings = params.prepare
    return {
        "base.source": params.base.source,
        "prepare.demonstrations.source": settings.demonstrations.source,
        "prepare.preferences.source": settings.preferences.source,
        "prepare.prompts.source": settings.prompts.source,
        "prepare.exclude": settings.exclude,
    }


def check_exists(key: str, source: str) -> None:
    """Make sure that a source is there; what is in it is for its stage to judge.

    Raises:
        InputError: there is nothing at that path.
    """
    if not Path(source).exists():
        raise InputError(
            f"params.yaml: {key} is {source}, which does not exist: trueline configure {key}=PATH mends it"
        )
