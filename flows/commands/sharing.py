"""The commands `trueline publish` and `trueline merge`."""

import typer

from flows.commands.common import AsJson, print_result


def publish(as_json: AsJson = False) -> None:
    """Push results to DVC and the record to git."""
    from flows.display.sharing import show_published
    from flows.processes.locks import refuse_a_second
    from flows.sharing.publish import publish as send

    refuse_a_second()
    published = send()
    print_result(published, as_json, show_published)
    if published["conflicts"]:
        raise typer.Exit(1)


def merge(as_json: AsJson = False) -> None:
    """Take in what other machines have published.

    It ends a merge that git has under way, or fetches and merges the upstream. Exit code 1: something needs a person.
    """
    from flows.display.sharing import show_merged
    from flows.processes.locks import refuse_a_second
    from flows.sharing.merging import merge as make_one

    refuse_a_second()
    merged = make_one()
    print_result(merged, as_json, show_merged)
    if merged["conflicts"]:
        raise typer.Exit(1)
