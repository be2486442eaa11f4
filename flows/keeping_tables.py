"""What `trueline gc`, `backup` and `restore` show to people."""

from collections.abc import Mapping
from typing import Any

from flows.tables import make_console, print_sentence, shown, table

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
