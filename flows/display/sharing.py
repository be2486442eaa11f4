"""What `trueline publish` and `trueline merge` show to people."""

from flows.display.tables import make_console, print_sentence
from flows.sharing.merging import Merged
from flows.sharing.publish import Published

_console = make_console()


def show_published(published: Published) -> None:
    """What went where, and what did not."""
    files = ", ".join(published["committed"]) or "nothing new"
    _sentence(f"Committed: {files}. Pushed to {published['branch']}: {published['commit'][:10]}.")
    if published["merged"]:
        _sentence(f"Taken in from there: {_commits(published['merged'])}.")
    if published["left"]:
        _sentence(f"Not published: {', '.join(published['left'])}; what depends on it is computed again elsewhere.")
    _show_conflicts(published["conflicts"])


def show_merged(merged: Merged) -> None:
    """What came in, and whose results dvc.lock has."""
    if merged["commits"] or merged["decisions"] or merged["stages"]:
        _sentence(f"Taken in: {_commits(merged['commits'])}, {merged['decisions']} decisions.")
    else:
        _sentence("Nothing new to take in.")
    for side, which in (("ours", "of this machine"), ("theirs", "of the other"), ("neither", "stale: trueline run")):
        if names := [stage for stage, taken in merged["stages"].items() if taken == side]:
            _sentence(f"Results {which}: {', '.join(names)}.")
    _show_conflicts(merged["conflicts"])
    if merged["next"]:
        _sentence(f"Then: {merged['next']}")


def _show_conflicts(conflicts: list[str]) -> None:
    for conflict in conflicts:
        _sentence(f"Conflict: {conflict}.")


def _commits(count: int) -> str:
    return f"{count} commit{'' if count == 1 else 's'}"


def _sentence(text: str) -> None:
    print_sentence(_console, text, 0)
