"""Jinja templates of HTML pages: what is filled in comes from data and must never act as HTML."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.common.escapes import into_html


def html_templates(folder: Path) -> Environment:
    """Give the environment of the templates in a folder; a name that is not filled in is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        finalize=into_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
