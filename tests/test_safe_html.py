"""What guests and models wrote is harmless in a notebook."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from supdist.engine.safe_html import TAGS, facts_html, forms_html, harmless_markup, text_html

PIECES = [
    "<",
    ">",
    "/",
    "script",
    "style",
    "b",
    "td",
    "onload=x",
    "colspan=3",
    "'",
    '"',
    "&lt;",
    "&#60;",
    "!--",
    "-->",
    "<![CDATA[",
    "<?x",
    "text",
    "\x00",
    "\u202e",
    "<svg",
    "<img\tsrc=x>",
    "<a\thref=javascript:x>",
    " ",
]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@given(st.lists(st.sampled_from(PIECES)).map("".join))
@example("<table><tr><td colspan='2' onclick=x>7</table>")
@example("<scr<script>ipt>x</script>")
def test_only_known_tags_and_spans_are_left(page: str) -> None:
    for shown in (
        harmless_markup(page),
        forms_html({"text/html": page}),
        facts_html([page]),
        text_html(page),
    ):
        tags = Tags()
        tags.feed(shown)
        tags.close()
        for tag, attributes in tags.seen:
            assert tag in TAGS
            assert set(attributes) <= {"colspan", "rowspan", "style"}
            assert "url" not in (attributes.get("style") or "")
        assert "\x00" not in shown
        assert "\u202e" not in shown


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("<p>a &amp; b</p>", "<p>a &amp; b</p>"),
        ("<style>td {x}</style><b>x", "<b>x</b>"),
        ("<ul><li>a<li>b</ul>c", "<ul><li>a<li>b</li></li></ul>c"),
        ("a</p>b", "ab"),
        ("1 < 2 <3", "1 &lt; 2 &lt;3"),
        ("x<!-- <b>hidden", "x <b>hidden</b>"),
        ("a<br/>b<hr >", "a<br>b<hr>"),
        ("<script>never ends <b>", ""),
    ],
)
def test_tables_and_formatting_stay(page: str, shown: str) -> None:
    assert harmless_markup(page) == shown


@pytest.mark.timing
@pytest.mark.parametrize("piece", ["<", "<a ", "<style", "<!", "<b>", "<td colspan=", "</b>", "<script>"])
def test_a_long_page_takes_no_long_time(piece: str) -> None:
    page = (piece * 500_000)[:500_000]
    started = time.perf_counter()
    forms_html({"text/html": page})
    assert time.perf_counter() - started < 3
