"""The memory that a plan predicts, as a terminal shows it."""

from collections.abc import Mapping
from typing import Any

from flows.display.tables import make_console, print_sentence, table

_console = make_console()
# Of a moment, and how the table calls them.
COLUMNS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimiser": "moments",
    "activations": "activations",
    "cache": "KV",
}


def show_memory(memory: Mapping[str, Any]) -> None:
    """A row a stage, at the moment that needs most, and what would make it fit."""
    rows = []
    for stage in memory["stages"]:
        peak = max(stage["moments"], key=lambda moment: sum(moment[name] for name in COLUMNS))
        sizes = [*(peak[name] for name in COLUMNS), stage["peak_gb"]]
        rows.append((stage["stage"], peak["name"], *map(_gb, sizes)))
    header = ("GB at the peak", "when", *COLUMNS.values(), "all")
    _console.print(table(header, rows, _console.width, right=tuple(range(2, len(header)))))
    for sentence in sentences(memory):
        print_sentence(_console, sentence)


def sentences(memory: Mapping[str, Any]) -> list[str]:
    """What the table means."""
    device, rows = memory["device"], memory["rows"]
    each = "each GPU" if device["is_gpu"] else "this machine"
    found = [
        f"Memory of {each}: {device['memory_gb']:g} GB"
        + (f", {device['number']} of them" if device["number"] > 1 else "")
        + f". Rows of {rows['row']} tokens, prompts of {rows['prompt']}. "
        + ("A GPU needs 5 % and 1 GB more than tensors hold. " if device["is_gpu"] else "")
    ]
    if memory["matrix_tflops"]:
        speeds = ", ".join(f"{each['stage']} {each['tokens_a_second']:,}" for each in memory["stages"])
        found.append(
            f"Tokens a second on one of them, by {memory['matrix_tflops']:g} TFLOP/s of matrix products alone, so at "
            f"most, sampling left out: {speeds}."
        )
    if memory["fits"]:
        found.append("It fits.")
    elif memory["change"] is None:
        found.append("It does not fit, and no setting known here makes it: take a smaller base model, or more devices.")
    else:
        change, large = memory["change"], [each["stage"] for each in memory["stages"] if not each["fits"]]
        peaks = ", ".join(f"{stage} {peak:g}" for stage, peak in change["peaks_gb"].items())
        found.append(
            f"Too large: {', '.join(large)}. The least change that fits: trueline configure "
            f"{' '.join(change['settings'])} (GB at the peak: {peaks})."
        )
    return found


def _gb(size: float) -> str:
    return f"{size:.1f}" if size >= 1 else f"{size:.2f}"
