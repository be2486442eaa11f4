"""Text that comes from data or models, escaped for where it goes: a terminal, JSON, HTML, Markdown, a spreadsheet.

Nobody who wrote a row, a name or an answer may colour a terminal, draw a line that we did not write, turn text round,
run markup or have a cell computed. What cannot be seen is shown as an escape; nothing is taken away.
"""

import html
import re
from typing import Any

# Control characters (of C1, too: 9B begins a sequence as ESC [ does), what turns the direction of text round, invisible
# characters and halves of pairs. Joiners and direction marks stay: emoji and whole languages are written with them.
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u180e\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)
# What CommonMark and its extensions (tables, strikethrough, mathematics, :emoji:, addresses that become links) act on.
MARKDOWN = re.compile(r"[\\`*_\[\]|~^$@{}!]|:(?=\S)|(?<=www)\.")
BEGINS_A_BLOCK = re.compile(r"[#=]|[+\-](?![\w.])|(?<=\d)[.)](?=\s|$)")
# What a spreadsheet may compute, also in the wide characters of East Asian keyboards (OWASP, "CSV Injection").
FORMULA = re.compile("[=+\\-@\uff1d\uff0b\uff0d\uff20]")
SEPARATORS = ",;|\t\n\r"  # of cells and rows, in some country or other


class Written(str):
    """Text that is in the form of its destination already, for the templates."""

    __slots__ = ()


def visible(text: str, *, kept: str = "\n\t") -> str:
    r"""Show what a terminal or a page would act on or hide as an escape: ESC as `\x1b`; characters of `kept` stay."""
    return HIDDEN.sub(lambda found: found[0] if found[0] in kept else _escape(found[0]), text)


def one_line(text: object) -> str:
    r"""Show a text in one line; the ends of its lines become `\n`."""
    return visible(str(text), kept="")


def safe_json(text: str) -> str:
    """Escape in JSON what a terminal would act on; it means the same JSON."""
    return HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else _json_escape(found[0]), text)


def markdown(text: object) -> str:
    """Escape a text for a paragraph, a cell or a point of a list in Markdown: it is shown as it is, in one line."""
    plain = html.escape(one_line(" ".join(str(text).split("\n"))), quote=False).strip()
    # html.escape has written & and ; alone, which stand for nothing else.
    inline = MARKDOWN.sub(lambda found: f"\\{found[0]}", plain)
    digits = len(inline) - len(inline.lstrip("0123456789"))
    begins = BEGINS_A_BLOCK.match(inline, digits)
    return f"{inline[:digits]}\\{inline[digits:]}" if begins else inline


def code(text: object) -> Written:
    """Put a text as it is into a span of Markdown's code, also where that stands in a table."""
    plain = one_line(text)
    ticks = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    room = " " if plain.startswith("`") or plain.endswith("`") or plain != plain.strip() else ""
    return Written(f"{ticks}{room}{plain}{room}{ticks}".replace("|", "\\|"))


def cell(text: str) -> str:
    """Keep spreadsheets from computing a text, or a part of it: an apostrophe before a formula makes it text.

    A spreadsheet of another country splits at another separator, and goes by no quotes then.
    """
    return FORMULA.sub(lambda found: f"'{found[0]}" if _begins_a_cell(text, found.start()) else found[0], text)


def into_html(value: Any) -> Any:  # noqa: ANN401 (Jinja's finalize: whatever a template prints)
    """Show in a page what it would hide; for the templates, which escape markup themselves."""
    return visible(value) if type(value) is str else value


def into_markdown(value: Any) -> Any:  # noqa: ANN401 (Jinja's finalize: whatever a template prints)
    """Escape every text that a Markdown template prints, but for what is Markdown already."""
    from jinja2 import Undefined

    return value if isinstance(value, Written | int | float | Undefined) else markdown(value)


def _begins_a_cell(text: str, place: int) -> bool:
    """Tell whether nothing but white space and quotes stands between a place and a separator, or the beginning."""
    while place and (text[place - 1].isspace() or text[place - 1] == '"') and text[place - 1] not in SEPARATORS:
        place -= 1
    return place == 0 or text[place - 1] in SEPARATORS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
