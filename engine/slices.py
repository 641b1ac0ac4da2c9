"""Texts and bytes of any size, in slices. ``in_slices`` runs each of these functions in an event loop."""

from __future__ import annotations

import codecs
import ctypes
import hashlib
from collections.abc import Iterable, Iterator

from ..handlers.slices import SLICE, Steps, finish, in_slices
from ..sandbox_image.text import KEEP_SURROGATES
from ..sandbox_image.text import replace_surrogates as replace_in_piece

__all__ = [
    "SLICE",
    "Steps",
    "decode",
    "encode",
    "finish",
    "in_slices",
    "join",
    "replace_surrogates",
    "sha256",
    "strip_end",
    "text_slices",
    "utf8_bytes",
    "utf8_slices",
]

# Characters that are joined at once: fresh memory for them takes up to 8 ms.
_JOINED = 4 << 20

# The C API of strings. Nothing else makes a long text piece by piece: "".join of 16 M characters with one
# emoji takes 30 ms, and needs the lock.
_new = ctypes.pythonapi.PyUnicode_New
_new.argtypes, _new.restype = [ctypes.c_ssize_t, ctypes.c_uint32], ctypes.c_void_p
_copy = ctypes.pythonapi.PyUnicode_CopyCharacters
_copy.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.py_object, ctypes.c_ssize_t, ctypes.c_ssize_t]
_copy.restype = ctypes.c_ssize_t
_release = ctypes.pythonapi.Py_DecRef
_release.argtypes, _release.restype = [ctypes.c_void_p], None


def text_slices(text: str) -> Iterator[str]:
    """Cut a text into slices."""
    for start in range(0, len(text), SLICE):
        yield text[start : start + SLICE]


def encode(text: str, errors: str = "strict") -> Iterator[bytes]:
    """Yield the UTF-8 of a text in slices.

    Raises:
        UnicodeEncodeError: a surrogate, with ``strict``.
    """
    for piece in text_slices(text):
        yield piece.encode("utf-8", errors)


def utf8_slices(text: str) -> Iterator[bytes]:
    """Yield the UTF-8 of a text in slices; lone surrogates are kept."""
    return encode(text, KEEP_SURROGATES)


def decode(
    data: Iterable[bytes | bytearray | memoryview], errors: str = "strict", encoding: str = "utf-8"
) -> Steps[str]:
    """Decode as ``b"".join(data).decode(encoding, errors)`` does.

    Raises:
        UnicodeDecodeError: with ``strict``.
    """
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    pieces: list[str] = []
    for each in data:
        with memoryview(each) as view:
            for start in range(0, len(view), SLICE):
                with view[start : start + SLICE] as part:
                    pieces.append(decoder.decode(bytes(part)))
                yield
    pieces.append(decoder.decode(b"", final=True))
    return (yield from join(pieces))


def join(pieces: list[str]) -> Steps[str]:
    """Join texts of about ``SLICE`` characters each; empty the list."""
    size = sum(map(len, pieces))
    if size <= _JOINED:
        text = "".join(pieces)
        pieces.clear()
        return text
    widest = "\0"
    for piece in pieces:
        widest = max(widest, _widest(piece))
        yield
    address = _new(size, ord(widest))
    try:
        at = 0
        pieces.reverse()
        while pieces:
            piece = pieces.pop()
            # It raises if anything else refers to the text, which is no text yet.
            _copy(address, at, piece, 0, len(piece))
            at += len(piece)
            yield
        whole: str = ctypes.cast(address, ctypes.py_object).value
        return whole
    finally:
        _release(address)


def _widest(piece: str) -> str:
    # The largest character that takes as many bytes in memory as the largest of the piece.
    if piece.isascii():
        return "\x7f"
    try:
        piece.encode("latin-1")
    except UnicodeEncodeError:
        is_wide = len(piece.encode("utf-16-le", KEEP_SURROGATES)) > 2 * len(piece)
        return "\U0010ffff" if is_wide else "\uffff"
    return "\xff"


def utf8_bytes(text: str) -> Steps[int]:
    """Return the bytes of a text in UTF-8."""
    size = 0
    for piece in utf8_slices(text):
        size += len(piece)
        yield
    return size


def replace_surrogates(text: str) -> Steps[str]:
    """Return the text with pairs joined and lone surrogates as U+FFFD, as ``text.replace_surrogates``."""
    pieces: list[str] = []
    start = 0
    while start < len(text):
        end = start + SLICE
        # A pair stays together.
        if "\ud800" <= text[end - 1 : end] <= "\udbff":
            end += 1
        pieces.append(replace_in_piece(text[start:end]))
        start = end
        yield
    return (yield from join(pieces))


def sha256(text: str) -> Steps[bytes]:
    """Return the SHA-256 of the UTF-8 of a text, which may hold surrogates."""
    digest = hashlib.sha256()
    for piece in utf8_slices(text):
        digest.update(piece)
        yield
    return digest.digest()


def strip_end(text: str, character: str) -> int:
    """Return the length of ``text.rstrip(character)``; 16 M characters take 2 ms, not 70."""
    end = len(text)
    run = character * min(SLICE, end)
    while run and end and text.endswith(run, 0, end):
        end -= len(run)
        run = run[:end]
    # Fewer than ``run`` are left of it.
    start = max(0, end - len(run))
    return start + len(text[start:end].rstrip(character))
