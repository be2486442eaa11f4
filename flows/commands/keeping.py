"""Commands that delete what nothing needs, and that keep what must not be lost."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.common import AsJson, print_result, settings


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
    from flows.display.keeping import show_garbage
    from flows.gc import collect_garbage

    print_result(collect_garbage(settings(), keep, days, yes=yes), as_json, show_garbage)


def backup(
    folder: Annotated[Path, typer.Argument(help="A new or an empty folder.")],
    push: Annotated[bool, typer.Option("--push", help="First send what the aliases reach to DVC's remote.")] = False,
    as_json: AsJson = False,
) -> None:
    """Save the tracking database, record, lock file and settings.

    Weights and data stay in DVC's remote; what the aliases reach and it lacks is named, with exit code 1.
    """
    from flows.display.keeping import show_backup
    from tasks.registry.backup.save import backup as save

    saved = save(settings(), folder, push=push)
    print_result(saved, as_json, show_backup)
    if saved["unreachable"]:
        raise typer.Exit(1)


def restore(
    folder: Annotated[Path, typer.Argument(help="A folder that trueline backup wrote.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also replace what is newer here.")] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Then fetch what the aliases reach from DVC's remote.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a backup into this checkout, after a check of every file.

    What it overwrites is kept in .trueline/replaced.
    """
    from flows.display.keeping import show_restored
    from flows.processes.locks import one_flow_at_a_time
    from tasks.registry.backup.load import restore as load

    with one_flow_at_a_time():
        restored = load(folder, overwrite=overwrite, fetch=fetch)
    print_result(restored, as_json, show_restored)
    if restored["unreachable"]:
        raise typer.Exit(1)
