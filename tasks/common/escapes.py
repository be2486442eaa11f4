"""Escaping text from data or models for a terminal, JSON, HTML, Markdown or a spreadsheet.

A row, a name or an answer must not colour a terminal, add a line of output, reverse text, run markup or compute a cell.
Invisible characters are shown as escapes; nothing is removed.
"""

import html
import re
from typing import Any

# Control characters (C1 too: 9B starts a sequence as ESC [ does), changes of text direction, invisible characters, lone
# surrogates. Joiners and direction marks stay: emoji and whole languages need them.
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u180e\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
# Syntax of CommonMark and its extensions (tables, strikethrough, mathematics, :emoji:, automatic links).
MARKDOWN = re.compile(r"[\\`*_\[\]|~^$@{}!]|:(?=\S)|(?<=www)\.")
BLOCK_START = re.compile(r"[#=]|[+\-](?![\w.])|(?<=\d)[.)](?=\s|$)")
# Formula starts in spreadsheets, also in full-width characters (OWASP, "CSV Injection").
FORMULA = re.compile("[=+\\-@\uff1d\uff0b\uff0d\uff20]")
SEPARATORS = ",;|\t\n\r"  # of cells and rows, in any locale


class Written(str):
    """Text that is already escaped for its destination, for the templates."""

    __slots__ = ()


def visible(text: str, *, unescaped: str = "\n\t") -> str:
    r"""Escape characters that a terminal or a page acts on or hides, ESC as `\x1b`; those in `unescaped` stay."""
    return HIDDEN.sub(lambda found: found[0] if found[0] in unescaped else _escape(found[0]), text)


def one_line(text: object) -> str:
    r"""Return a text in one line; line ends become `\n`."""
    return visible(str(text), unescaped="")


def safe_json(text: str) -> str:
    """Escape characters in JSON that a terminal would act on; the JSON means the same."""
    return HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else _json_escape(found[0]), text)


def markdown(text: object) -> str:
    """Escape a text for a paragraph, a table cell or a list item in Markdown, in one line."""
    plain = html.escape(one_line(" ".join(str(text).split("\n"))), quote=False).strip()
    # After html.escape, & and ; occur only in entities.
    inline = MARKDOWN.sub(lambda found: f"\\{found[0]}", plain)
    digits = len(inline) - len(inline.lstrip("0123456789"))
    begins = BLOCK_START.match(inline, digits)
    return f"{inline[:digits]}\\{inline[digits:]}" if begins else inline


def code(text: object) -> Written:
    """Return a text as a code span in Markdown, also valid in a table."""
    plain = one_line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    padding = " " if plain.startswith("`") or plain.endswith("`") or plain != plain.strip() else ""
    return Written(f"{ticks}{padding}{plain}{padding}{ticks}".replace("|", "\\|"))


def cell(text: str) -> str:
    """Put an apostrophe before every formula in a text, so that spreadsheets compute nothing.

    A spreadsheet of another locale splits at another separator, and then ignores quotes.
    """
    return FORMULA.sub(lambda found: f"'{found[0]}" if _begins_a_cell(text, found.start()) else found[0], text)


def into_html(value: Any) -> Any:  # noqa: ANN401 (Jinja's finalize: whatever a template prints)
    """Show invisible characters in a page; the templates escape markup themselves."""
    return visible(value) if type(value) is str else value


def into_markdown(value: Any) -> Any:  # noqa: ANN401 (Jinja's finalize: whatever a template prints)
    """Escape every text that a Markdown template prints, except text that is already Markdown."""
    from jinja2 import Undefined

    return value if isinstance(value, Written | int | float | Undefined) else markdown(value)


def _begins_a_cell(text: str, at: int) -> bool:
    """Return whether only white space and quotes are between a position and a separator or the start."""
    while at and (text[at - 1].isspace() or text[at - 1] == '"') and text[at - 1] not in SEPARATORS:
        at -= 1
    return at == 0 or text[at - 1] in SEPARATORS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
