"""What `trueline gc`, `backup` and `restore` show to people."""

from collections.abc import Mapping
from typing import Any

from flows.display.tables import make_console, print_sentence, shown, table

UNITS = ("B", "kB", "MB", "GB", "TB")
_console = make_console()


def show_garbage(found: Mapping[str, Any]) -> None:
    """The versions and why they stay, and what goes from each place."""
    rows = [
        (f"{version['model']} {version['version']}", ", ".join(version["reasons"]) or _fate(found, version))
        for version in found["versions"]
    ]
    _console.print(table(("version", "stays because of"), rows, _console.width))
    print_sentence(_console, f"Also kept: what {', '.join(found['named_by'])} name.")
    _console.print()
    places = [
        (place["place"], str(place["objects"]), size(place["bytes"]), str(place["young"])) for place in found["places"]
    ]
    header = ("place", "deleted" if found["deleted"] else "would go", "size", f"under {found['days']} days, stay")
    _console.print(table(header, places, _console.width, right=(1, 2, 3)))
    for model, alias in found["aliases"]:
        verb = "is" if found["deleted"] else "would be"
        print_sentence(_console, f"The alias {alias} of {model} {verb} given up: --keep does not name it.")
    for md5 in found["lacking"]:
        print_sentence(_console, f"{md5} must stay, and neither DVC's cache nor its remote has it.")
    if found["left_alone"]:
        print_sentence(_console, f"{found['left_alone']}.")
    if not found["deleted"]:
        _console.print(shown("Nothing has been deleted. To delete: the same command with --yes"), soft_wrap=True)


def show_backup(saved: Mapping[str, Any]) -> None:
    """What was saved, and what must be saved elsewhere."""
    counts = f"{saved['files']} files, {size(saved['bytes'])}"
    print_sentence(_console, f"{saved['folder']} is complete ({counts}, database: {saved['database']}).")
    _show_reach(saved)


def show_restored(restored: Mapping[str, Any]) -> None:
    """What was restored, and where what it replaced is."""
    print_sentence(_console, f"Restored from {restored['made']}: {', '.join(restored['restored'])}.")
    if restored["record"] != "restored":
        print_sentence(_console, "The record here has more decisions than the backup, so it stays, with its settings.")
    if restored["replaced"]:
        print_sentence(_console, f"What was replaced is in {restored['replaced']}.")
    _show_reach(restored)
    first = "" if restored["fetched"] else f"trueline restore {restored['folder']} --fetch, then "
    _console.print(shown(f"Next: {first}trueline sync"), soft_wrap=True)


def _show_reach(found: Mapping[str, Any]) -> None:
    names = ", ".join(f"{alias} (version {version})" for alias, version in found["aliases"].items())
    for note in found["notes"]:
        print_sentence(_console, note)
    for sentence in found["unreachable"]:
        print_sentence(_console, f"Missing: {sentence}.")
    if found["unreachable"]:
        command = "trueline backup --push FOLDER"
        _console.print(shown(f"To send what is missing, where it lies: {command}"), soft_wrap=True)
    if names:
        verdict = "not all that they reach can be fetched" if found["unreachable"] else "all they reach can be fetched"
        print_sentence(_console, f"Aliases: {names}; {verdict}.")


def _fate(found: Mapping[str, Any], version: Mapping[str, Any]) -> str:
    if version["weights_deleted"]:
        return f"weights deleted on {version['weights_deleted']}"
    return "weights deleted" if found["deleted"] else "nothing: its weights would go"


def size(count: int) -> str:
    """Say a number of bytes shortly."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{count} B"
