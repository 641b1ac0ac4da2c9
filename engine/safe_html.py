"""HTML for notebooks, made of what models and guests wrote: nothing in it runs or loads anything."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from html import escape, unescape

from ..sandbox_image.terminal_text import finish, terminal_text
from ..sandbox_image.text import printable, shorten_middle

# A notebook keeps its outputs in its file.
_MOST_CHARACTERS = 20_000
_MOST_MARKUP = 500_000
# Open tags among which an end tag looks for its own: else many of both take long.
_MOST_SEARCHED = 100

# All that tables and rendered text need. No attribute but these two is kept: others could load something.
TAGS = frozenset(
    [
        "table",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "th",
        "td",
        "caption",
        "p",
        "b",
        "i",
        "u",
        "em",
        "strong",
        "small",
        "sub",
        "sup",
        "ul",
        "ol",
        "li",
        "dl",
        "dt",
        "dd",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "pre",
        "code",
        "blockquote",
        "div",
        "span",
        "br",
        "hr",
    ]
)
_WITHOUT_END = frozenset({"br", "hr"})
_DROPPED = frozenset({"style", "script", "head", "title"})
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]{0,15})((?:\s[^<>]{0,2000})?)/?>|<!--|<![^<>]{0,200}>")
_SPAN = re.compile(r"\s(colspan|rowspan)\s*=\s*[\"']?(\d{1,3})")


def text_html(text: str, colour: str = "inherit") -> str:
    """Return text as a block that wraps."""
    style = f"white-space:pre-wrap;overflow-wrap:anywhere;margin:0.3em 0;color:{colour}"
    return f'<pre style="{style}">{escape(printable(shorten_middle(text, _MOST_CHARACTERS)))}</pre>'


def output_html(output: str, colour: str = "inherit") -> str:
    """Return output of code, as a terminal shows it."""
    return text_html(finish(terminal_text(output)), colour)


def facts_html(facts: Iterable[str]) -> str:
    """Return one small line."""
    return f"<div><small>{escape(printable(' · '.join(facts)))}</small></div>"


def forms_html(forms: Mapping[str, str | bytes]) -> str:
    """Return the richest form of a value; ``forms`` are by MIME type."""
    for mime in ("image/png", "image/jpeg", "image/svg+xml"):
        if mime in forms:
            form = forms[mime]
            data = base64.b64encode(form if isinstance(form, bytes) else form.encode()).decode()
            # As an image, an SVG runs no scripts and loads nothing.
            return f'<img style="max-width:100%" src="data:{mime};base64,{data}">'
    page = forms.get("text/html")
    if isinstance(page, str) and len(page) <= _MOST_MARKUP:
        return f"<div>{harmless_markup(page)}</div>"
    return output_html(str(forms.get("text/plain", "")))


def harmless_markup(page: str) -> str:
    """Keep tables and plain formatting of an HTML text, and escape or drop the rest, in one pass."""
    markup, position = _Markup(), 0
    for found in _TAG.finditer(page):
        markup.add_text(page[position : found.start()])
        position = found.end()
        markup.add_tag((found[2] or "").lower(), found[3] or "", is_end=bool(found[1]))
    markup.add_text(page[position:])
    return markup.as_html()


class _Markup:
    def __init__(self) -> None:
        self._kept: list[str] = []
        self._opened: list[str] = []
        # The tag whose text is left out.
        self._dropping = ""

    def add_text(self, text: str) -> None:
        if not self._dropping:
            self._kept.append(escape(printable(unescape(text))))

    def add_tag(self, name: str, attributes: str, *, is_end: bool) -> None:
        if self._dropping:
            if is_end and name == self._dropping:
                self._dropping = ""
        elif name in _DROPPED:
            self._dropping = "" if is_end else name
        elif name in TAGS:
            if is_end:
                self._end(name)
            else:
                self._begin(name, attributes)

    def _begin(self, name: str, attributes: str) -> None:
        spans = "".join(f' {each}="{number}"' for each, number in _SPAN.findall(attributes))
        self._kept.append(f"<{name}{spans}>")
        if name not in _WITHOUT_END:
            self._opened.append(name)

    def _end(self, name: str) -> None:
        if name in self._opened[-_MOST_SEARCHED:]:
            last = ""
            while last != name:
                last = self._opened.pop()
                self._kept.append(f"</{last}>")

    def as_html(self) -> str:
        return "".join([*self._kept, *(f"</{name}>" for name in reversed(self._opened))])
