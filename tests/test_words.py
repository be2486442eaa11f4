"""Words the project has given up for the field's do not come back."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The old word, as a whole word in any case, and what the field says.
OLD = {
    "company": "other processes, or other rows",
    "fitting": "training loop",
    "foreseen": "expected",
    "foretell": "predict",
    "foretold": "predicted",
    "frontier": "over-optimisation curve",
    "furnish": "give, or provide",
    "gold": "ground-truth reward",
    "heard": "imported, or noticed",
    "holder": "owner",
    "integration_alpha": "reward_smoothing",
    "learner": "PPO trainer",
    "mend": "fix, or repair",
    "meters": "system metrics",
    "parted": "over-optimised",
    "read_off": "model outputs",
    "readings": "model outputs",
    "said": "message, or logged",
    "settle": "resolve",
    "token_statistics": "model outputs",
    "tokens_per_pass": "max_tokens_per_micro_batch",
    "told": "reported, or message",
    "trial": "reward_check",
    "trunk": "shared backbone",
    "unnoted": "unrecorded",
    "visited": "evaluation points",
    "whoever": "users who",
}
# Where old words must stand: they say what was renamed, or read what an earlier release wrote.
EXCEPT = (
    "CHANGELOG.md",
    "tasks/settings/params.py",  # RENAMED
    "tests/test_params.py",  # of RENAMED
    "tasks/evaluation/earlier_layouts.py",
    "tests/evaluation/test_earlier_layouts.py",
    "tasks/registry/promotion/earlier_releases.py",
    "tests/registry/test_earlier_releases.py",
    "tests/registry/earlier_release/",
    "tests/test_words.py",
)
PROSE_OR_CODE = {".md", ".py", ".yaml", ".yml", ".toml", ".j2", ".html", ".css", ".sh", ".conf", ""}
WORDS = re.compile(rf"(?<![A-Za-z0-9_])({'|'.join(OLD)})(?![A-Za-z0-9_])", re.IGNORECASE)


def old_words(name: str, text: str) -> list[str]:
    """Each old word of a text as `file:line: old: the field says new`."""
    return [
        f"{name}:{number}: {word}: the field says {OLD[word.lower()]}"
        for number, line in enumerate(text.splitlines(), 1)
        for word in WORDS.findall(line)
    ]


def test_no_tracked_file_has_an_old_word() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and not name.startswith(EXCEPT)]
    texts = {name: ROOT / name for name in names if Path(name).suffix in PROSE_OR_CODE and (ROOT / name).is_file()}

    assert {"README.md", "params.yaml", "tasks/ppo.py"} <= set(texts)
    found = [each for name, path in texts.items() for each in old_words(name, path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize("text", ["a\nthe Frontier of", "trial:", "x = visited"])
def test_an_old_word_is_found_with_its_line(text: str) -> None:
    [found] = old_words("a.md", text)
    assert re.fullmatch(r"a\.md:[12]: \w+: the field says .+", found)


@pytest.mark.parametrize("text", ["recommend", "trials_of", "trunks", "industrial"])
def test_a_longer_word_is_another(text: str) -> None:
    assert old_words("a.md", text) == []
