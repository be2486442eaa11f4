"""What a version says of itself on MLflow's pages."""

from typing import Any

from markdown_it import MarkdownIt

from tasks.registry.versions import _description

NAME = "<img src=x onerror=alert(1)> **Ada** [x](javascript:y)\n# z"


def test_a_description_shows_names_and_reasons_and_runs_none_of_them() -> None:
    decision: Any = {
        "action": "promote",
        "time": "2026-11-29T12:00:00+00:00",
        "who": NAME,
        "reasons": [NAME],
        "review": {"by": NAME, "reason": NAME},
    }
    page = MarkdownIt("commonmark").render(_description(decision))
    assert page.count("<") == 2  # one paragraph
    assert page.count("&lt;img src=x onerror=alert(1)&gt; **Ada** [x](javascript:y) # z") == 3
