"""What the parts of the command line share."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from tasks.common.escapes import safe_json

if TYPE_CHECKING:
    from tasks.settings.params import Params

Content = TypeVar("Content")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]

# Every command stands in one of these parts of the help.
PANELS = PIPELINE, MODELS, PEOPLE, OPERATIONS = ("Pipeline", "Models", "People", "Operations")


def settings() -> "Params":
    """Read params.yaml."""
    from tasks.settings.params import load_params

    return load_params()


def print_result(content: Content, as_json: bool, show: Callable[[Content], None]) -> None:
    """Print a command's result as JSON, or as people read it."""
    if as_json:
        print(safe_json(json.dumps(content, indent=2, ensure_ascii=False)))
    else:
        show(content)
