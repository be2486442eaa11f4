"""Commands that delete what nothing needs, and that keep what must not be lost."""

from typing import Annotated

import typer

from flows.cli_common import AsJson, print_result, settings


def gc(
    *,
    keep: Annotated[
        str, typer.Option(metavar="NAMES", help="Versions that stay beside the champion, by name or number.")
    ] = "champion,previous,challenger,held",
    days: Annotated[int, typer.Option(min=1, help="What is younger stays, wherever it lies.")] = 30,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete. Without it, the command only shows what would go.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete results that no kept version, branch or recent run needs.

    From DVC's cache and default remote, and weights from MLflow. Records, cards and metrics stay.
    """
    from flows.gc import collect_garbage
    from flows.keeping_tables import show_garbage

    print_result(collect_garbage(settings(), keep, days, yes=yes), as_json, show_garbage)
