"""Links in the docs lead somewhere, and files that the docs name exist."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

LISTED = subprocess.run(("git", "ls-files", "-z"), cwd=ROOT, check=True, capture_output=True, text=True).stdout
FILES = [Path(name) for name in LISTED.rstrip("\0").split("\0")]
# CHANGELOG.md tells of files as they were.
PAGES = [path for path in FILES if path.suffix == ".md" and path.name != "CHANGELOG.md" and (ROOT / path).exists()]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`((?:[\w-]+/)*(?:test_\w+\.py|tasks/[\w./-]+|flows/[\w./-]+|infra/[\w./-]+|docs/[\w./-]+))`")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (ROOT / page.parent / name).resolve() if name else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked.relative_to(ROOT)), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in NAMED.findall((ROOT / page).read_text(encoding="utf-8")):
        found = (ROOT / name).exists() or any((ROOT / "tests").glob(f"**/{name}"))  # tests by their place in tests/
        assert found, f"{page} names {name}"
