"""What a browser would make of a page of ours: its elements, its text, and whether a row could act in it."""

from html.parser import HTMLParser

HOSTILE = (
    "<script>alert(1)</script><iframe srcdoc='<script>alert(2)</script>'></iframe><img src=http://x.example onerror=x>"
    '<meta http-equiv="refresh" content="0;url=http://evil.example"></table>\x1b[2J\u202e{{ 7 * 7 }}'
)
SHOWN = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
STRUCTURE = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "a"}
TABLES = {"table", "caption", "thead", "tbody", "tr", "th", "td"}


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(page: Elements, places: set[str]) -> None:
    """Make sure that nothing of a row has become markup and the page loads nothing; `places` are its own links."""
    assert {tag for tag, _ in page.found} <= STRUCTURE | TABLES
    assert {name for _, attributes in page.found for name in attributes} == {
        *("lang", "charset", "name", "content", "http-equiv"),
        *("class", "scope", "id", "href"),
    }
    assert {attributes["href"] for _, attributes in page.found if "href" in attributes} == places
    [policy] = [found["content"] for _, found in page.found if "http-equiv" in found]
    assert str(policy).split("; ") == [
        *("default-src 'none'", "style-src 'unsafe-inline'", "base-uri 'none'", "form-action 'none'"),
    ]
