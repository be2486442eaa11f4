"""What data say is shown as it is, and acts on nothing: terminals, JSON, Markdown and spreadsheets.

Markdown is read back by two independent parsers, mistune and markdown-it, with the extensions that hubs and MLflow use.
"""

import csv
import html
import io
import json
import re
import sys
import unicodedata

import mistune
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Environment
from markdown_it import MarkdownIt

from tasks.common.escapes import Written, cell, code, into_html, into_markdown, markdown, safe_json, visible

EVERY_CHARACTER = [chr(number) for number in range(sys.maxunicode + 1)]
TURNS_ROUND = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # Unicode's bidirectional classes
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "**bold** _so_ ~~gone~~ `code` $x$",
    "| a | b |",
    "# Heading",
    "- point",
    "+ point",
    "12. point",
    "3) point",
    "> quoted",
    "---",
    "===",
    "```\ncode",
    "    indented",
    "<https://evil.example>",
    "https://evil.example",
    "www.evil.example",
    "&lt;b&gt; &#60;",
    "a\\*b\\",
    "line\n\n# next",
    "[x]: http://evil.example",
    ":smile: {{ x }} {% y %}",
    "2.5 of -3",
]
TEXTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.sampled_from("\\`*_[]()<>#+-.!|~^$={}&;:@/\"' \n1aw"), max_size=30),
    st.text(max_size=30),
)


def test_nothing_stays_that_a_terminal_acts_on_or_that_turns_text_round() -> None:
    shown = [visible(character, unescaped="") for character in EVERY_CHARACTER]
    acting = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of pairs, ends of lines and paragraphs
    for character, text in zip(EVERY_CHARACTER, shown, strict=True):
        acts = unicodedata.category(character) in acting or unicodedata.bidirectional(character) in TURNS_ROUND
        assert (text != character) or not acts
        assert text == character or (text.isascii() and text.startswith("\\"))


def test_what_people_write_stays_as_it_is() -> None:
    written = "naïve, 你好, नमस्ते, שלום\u200f, x\u200cy, 👩\u200d🔬 [bold]\n\tdone"
    assert visible(written) == written
    assert visible("\x1b[2J\x9b1m\u202e\r") == "\\x1b[2J\\x9b1m\\u202e\\r"


@given(st.text(st.characters(), max_size=20))
def test_json_means_what_it_meant(text: str) -> None:
    printed = safe_json(json.dumps({"text": text}, ensure_ascii=False, indent=2))
    assert json.loads(printed) == {"text": text}
    assert visible(printed) == printed


def read_by_mistune(text: str) -> str:
    return str(mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "math", "url"])(text))


def read_by_markdown_it(text: str) -> str:
    return str(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def as_shown(page: str, element: str) -> str:
    """The text of the only element of a page that may hold one."""
    [inner] = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    assert "<" not in inner, page
    return html.unescape(inner)


def in_one_line(text: str) -> str:
    return visible(" ".join(text.split("\n")), unescaped="").strip()


@pytest.mark.parametrize("read", [read_by_mistune, read_by_markdown_it])
@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_markdown_shows_a_text_and_is_not_ruled_by_it(read, text: str) -> None:
    shown = in_one_line(text)
    assert as_shown(read(f"- {markdown(text)} (end)"), "li").strip() == f"{shown} (end)".strip()
    assert as_shown(read(f"| name |\n|---|\n| {markdown(text)} (end) |\n"), "td") == f"{shown} (end)".strip()


@pytest.mark.parametrize("text", [*HOSTILE, "a`b``c", "`", "` `", "\x1b[31mred"])
def test_a_span_of_code_shows_a_text(text: str) -> None:
    page = read_by_markdown_it(f"| {code(text)} |\n|---|\n").replace("<code>", "").replace("</code>", "")
    assert as_shown(page, "th").strip() == visible(text, unescaped="").strip()


def test_a_template_escapes_whatever_it_prints() -> None:
    environment = Environment(finalize=into_markdown, autoescape=False)
    environment.filters["code"] = code
    page = environment.from_string("*{{ name }}* {{ name | code }} {{ 1.5 }} {{ done }}").render(
        name="<b>|", done=Written("| - |")
    )
    assert page == "*&lt;b&gt;\\|* `<b>\\|` 1.5 | - |"
    page = Environment(finalize=into_html, autoescape=True).from_string("<p>{{ name }}</p>").render(name="<b>\u202e")
    assert page == "<p>&lt;b&gt;\\u202e</p>"


FORMULAS = ["=1+1", "+1", "-1", "@sum(1)", "\uff1d1", "  =1", '"=1"', "\t=1", "=cmd|' /C calc'!A0"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("before", ["", "text{}", "text\n", "text\r\n"])
def test_no_spreadsheet_finds_a_formula_whatever_separates_its_cells(before, formula, separator) -> None:
    written = io.StringIO()
    csv.writer(written).writerow(["id", cell(before.format(separator) + formula), "last"])
    for quotes in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        rows = csv.reader(io.StringIO(written.getvalue()), delimiter=separator, quoting=quotes)
        for found in (text.strip(' "\t\r\n') for row in rows for text in row):
            assert not found or unicodedata.normalize("NFKC", found)[0] not in "=+-@"


@pytest.mark.parametrize("text", ["", "well-known", "a=1", "a@b.org", "x = y", "1-2", "Thank you - all", "'tis"])
def test_no_apostrophe_where_none_is_needed(text: str) -> None:
    assert cell(text) == text
