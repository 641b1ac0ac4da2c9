"""Decode text files: UTF-8, a byte order mark, or a guess.

A byte order mark is no part of the text. Line ends stay as they are.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

# The UTF-32-LE mark begins with the UTF-16-LE mark, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HEAD = 8192
# Guessing takes some 5 ms for a KiB.
_SAMPLE = 4096
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_CONTROL = re.compile(rb"[\x01-\x06\x0e-\x1a\x1c-\x1f]")
# With fewer such bytes than this, languages cannot be told apart.
_FEW = 24


class NotText(ValueError):
    """The bytes are no text."""


def marked_encoding(data: bytes) -> tuple[str, int]:
    """Return the encoding that a byte order mark names, else UTF-8; and the length of the mark."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding, len(mark)
    return unmarked_wide(data) or "utf-8", 0


def unmarked_wide(data: bytes) -> str | None:
    """Return the encoding if the bytes look like UTF-16 of a Western text without a mark."""
    head = data[:_HEAD]
    if len(head) < 8 or len(data) % 2:
        return None
    half = len(head) // 2
    even, odd = head[::2].count(0), head[1::2].count(0)
    if odd > 0.6 * half and even < 0.05 * half:
        return "utf-16-le"
    return "utf-16-be" if even > 0.6 * half and odd < 0.05 * half else None


def is_binary(data: bytes) -> bool:
    """Return whether the first bytes are binary data, and not text."""
    head = data[:_HEAD]
    return b"\0" in head or 20 * len(_CONTROL.findall(head)) > len(head)


def guess_encoding(data: bytes) -> str:
    """Return the encoding of bytes that are no UTF-8.

    Raises:
        NotText: they are no text.
    """
    if is_binary(data):
        raise NotText("it is a binary file, and no text")
    from charset_normalizer import from_bytes

    found = _NOT_ASCII.search(data)
    start = max(0, found.start() - 256) if found else 0
    sample = data[start : start + _SAMPLE]
    matches = from_bytes(sample, cp_exclusion=["utf_8", "utf_16", "utf_32", "utf_7"])
    best = matches.best()
    if best is None:
        return "cp1252"
    western = next((each for each in matches if "cp1252" in each.could_be_from_charset), None)
    is_short = len(_NOT_ASCII.findall(sample)) < _FEW
    if western is not None and (is_short or western.encoding == best.encoding):
        return "cp1252"
    # The family's most common member: it reads the same bytes, and more of the file.
    return {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932"}.get(best.encoding, best.encoding)


def decode_text(data: bytes) -> tuple[str, str | None]:
    """Return the text of a file, and its encoding if that was guessed.

    Raises:
        NotText: it is none.
    """
    encoding, mark = marked_encoding(data)
    try:
        return data[mark:].decode(encoding), None
    except UnicodeDecodeError as error:
        if mark:
            raise NotText(f"it is damaged {encoding.upper()} text (byte {error.start + mark})") from error
    guessed = guess_encoding(data)
    return data.decode(guessed, "replace"), guessed


def guess_warning(what: object, encoding: str) -> str:
    """Return the warning about a guessed encoding."""
    return (
        f"{what} is not UTF-8; it is read as {encoding.replace('_', '-')}. If that is wrong, save it as UTF-8"
    )


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        NotText: it has none.
    """
    try:
        return decode_text(path.read_bytes())[0]
    except NotText as error:
        raise NotText(f"{path}: {error}") from error
