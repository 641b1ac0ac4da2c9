"""Text on its way to a model, a file or a person: lone surrogates, control characters, length.

UTF-8 cannot hold a lone surrogate. Three rules apply:

- Replace (``replace_surrogates``): queries, code, prompts, answers, errors. Models and peers take UTF-8 only.
- Keep (``KEEP_SURROGATES``): contexts, and what is hashed. They come back equal to what was given.
- Escape (``escape_surrogates``): printed output, tracebacks, records. The reader sees which character it was.
"""

from __future__ import annotations

KEEP_SURROGATES = "surrogatepass"
ESCAPE_SURROGATES = "backslashreplace"

# All of Unicode's category Zs but the space. Fixed here: the guest imports no unicodedata.
_WIDE_SPACES = frozenset("\xa0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))
_SHOWN = _WIDE_SPACES | {"\n", "\t"}


def replace_surrogates(text: str) -> str:
    """Return an exact ``str`` that UTF-8 can hold: a pair is joined, a lone surrogate becomes U+FFFD."""
    text = str.__str__(text)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", KEEP_SURROGATES).decode("utf-16-le", "replace")
    return text


def escape_surrogates(text: str) -> str:
    """Return an exact ``str`` that UTF-8 can hold: a surrogate becomes its escape, such as ``\\ud800``."""
    text = str.__str__(text)
    return text if text.isascii() else text.encode("utf-8", ESCAPE_SURROGATES).decode()


def has_surrogates(text: str) -> bool:
    """Return whether UTF-8 cannot hold the text."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def printable(text: str) -> str:
    """Escape every character that could move a cursor, set a title, or hide or reorder text.

    Line ends and tabs stay. Unicode's categories Cc, Cf, Cs, Co, Cn, Zl and Zp are escaped.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in _SHOWN else _escape(each) for each in text)


def one_line(text: str) -> str:
    """Escape what ``printable`` escapes, line ends, tabs, and every space that only looks like U+0020."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def shorten(text: str, limit: int) -> str:
    """Return at most ``limit`` characters: the beginning, and an ellipsis for the rest."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shorten_middle(text: str, limit: int) -> str:
    """Return about ``limit`` characters: names often differ at their ends, so the middle is left out."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[len(text) - half :]}"


def excerpt(text: str, limit: int) -> str:
    """Return the head and the tail, ``limit`` characters together, with a line that counts the rest."""
    if len(text) <= limit:
        return text
    head = (limit + 1) // 2
    tail = limit - head
    rest = len(text) - limit
    return f"{text[:head]}\n[... {rest:,} characters left out ...]\n{text[len(text) - tail :]}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
