"""Prepare text for models, files and people: lone surrogates, control characters, length."""

from __future__ import annotations

# UTF-8 cannot hold a lone surrogate. Queries, code, prompts, answers and errors replace it: models and peers
# take only UTF-8. Contexts and hashed text keep it: they must come back equal. Output, tracebacks and records
# escape it: the reader sees which character it was.
KEEP_SURROGATES = "surrogatepass"
ESCAPE_SURROGATES = "backslashreplace"

# All of Unicode's category Zs but the space. Fixed here: the guest imports no unicodedata.
_WIDE_SPACES = frozenset("\xa0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))
_SHOWN = _WIDE_SPACES | {"\n", "\t"}


def replace_surrogates(text: str) -> str:
    """Return an exact ``str`` with pairs joined and lone surrogates as U+FFFD."""
    text = str.__str__(text)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", KEEP_SURROGATES).decode("utf-16-le", "replace")
    return text


def escape_surrogates(text: str) -> str:
    """Return an exact ``str`` with surrogates escaped, such as ``\\ud800``."""
    text = str.__str__(text)
    return text if text.isascii() else text.encode("utf-8", ESCAPE_SURROGATES).decode()


def has_surrogates(text: str) -> bool:
    """Return whether the text has surrogates."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def printable(text: str) -> str:
    """Escape control characters, but not line ends and tabs."""
    # The categories Cc, Cf, Cs, Co, Cn, Zl and Zp: they could move a cursor, or hide or reorder text.
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in _SHOWN else _escape(each) for each in text)


def one_line(text: str) -> str:
    """Escape control characters and all spaces but U+0020."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as ``1 call`` or ``1,200 calls``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shorten(text: str, limit: int) -> str:
    """Cut the end of a text above ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def shorten_middle(text: str, limit: int) -> str:
    """Cut the middle of a text above ``limit`` characters."""
    # Names often differ at their ends.
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[len(text) - half :]}"


def excerpt(text: str, limit: int) -> str:
    """Return head and tail of ``limit`` characters, with a line that counts the rest."""
    if len(text) <= limit:
        return text
    head = (limit + 1) // 2
    tail = limit - head
    rest = len(text) - limit
    return f"{text[:head]}{left_out(rest)}{text[len(text) - tail :]}"


def left_out(characters: int) -> str:
    """Return the line that stands for characters between head and tail."""
    return f"\n[... {characters:,} characters left out ...]\n"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
