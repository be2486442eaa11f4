"""What `trueline rounds` shows to people."""

from collections.abc import Mapping
from typing import Any

from flows.display.tables import make_console, print_sentence, table
from tasks.common.rounding import number


def show_rounds(done: Mapping[str, Any]) -> None:
    """A row a round, and why there is no further one."""
    console = make_console()
    names = list(dict.fromkeys(name for row in done["rounds"] for name in row["ground_truth"]))
    header = ("round", "answers of", "pairs", "by", "version", "gate", "win rate over opponent", *names)
    rows = [
        (
            str(row["round"]),
            _policy(row["policy"]),
            f"{row['pairs']:,}",
            row["annotator"],
            str(row["version"] or "unknown"),
            row["gate"] or "unknown",
            _with_interval(row["win_rate"].get("vs_opponent")),
            *(_ground_truth(row["ground_truth"].get(name)) for name in names),
        )
        for row in done["rounds"]
    ]
    console.print(table(header, rows, console.width, right=(0, 2)))
    if done["stopped"]:
        print_sentence(console, f"Stopped: {done['stopped']}")


def _policy(policy: Mapping[str, Any]) -> str:
    return f"version {policy['version']}" if policy["version"] else str(policy["name"])


def _ground_truth(scores: Mapping[str, Any] | None) -> str:
    """Such as: 0.702; over SFT 0.192 [0.160, 0.224]."""
    if scores is None:
        return ""
    return f"{number(scores['candidate'])}; over SFT {_with_interval(scores['difference'])}"


def _with_interval(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure.get("value") is None:
        return "none"
    return f"{number(figure['value'])} [{number(figure['low'])}, {number(figure['high'])}]"
