"""Collect what a cell printed, showed and answered, within the memory of its result."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Generator
from typing import NamedTuple, TypeAlias

from ..protocol import Display, ErrorInfo, Final, Output

# Of the result's memory, for all displays together.
_DISPLAY_SHARE = 4
_WIDEST = 4
# A character's width shows only beside the header of its string.
_HEADER = sys.getsizeof("")


_Join: TypeAlias = Callable[[list[str]], Generator[None, None, str]]


class Collected(NamedTuple):
    """A cell's texts; ``is_cut`` if they did not fit."""

    # UTF-8; invalid bytes are replaced.
    stdout: str
    stderr: str
    displays: list[dict[str, str | bytes]]
    final: str | None
    is_cut: bool


# Growing a buffer of 16 MiB would stop an event loop for 20 ms.
_PIECE_BYTES = 1 << 18


class CellCollector:
    """Collects the messages of one cell.

    Args:
        most_bytes: memory of the texts together. A character takes 1, 2 or 4 bytes, as the widest of its
            text does.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._display_room = most_bytes // _DISPLAY_SHARE
        # By stream, in pieces of about ``_PIECE_BYTES``.
        self._output: dict[int, list[bytearray]] = {1: [], 2: []}
        # By MIME type.
        self._displays: list[dict[str, str | bytes]] = []
        self._final: str | None = None
        self._is_cut = False

    @property
    def is_short(self) -> bool:
        """Whether ``finish`` takes few steps."""
        return all(len(pieces) < 2 for pieces in self._output.values())

    def add(self, message: Output | Display | Final) -> None:
        """Add a message."""
        match message:
            case Output():
                pieces = self._output[message.stream]
                if pieces and len(pieces[-1]) < _PIECE_BYTES:
                    pieces[-1] += message.data
                else:
                    pieces.append(bytearray(message.data))
            case Display():
                self._show({**message.text, **message.images})  # type: ignore[dict-item]  # mypy does not widen a Literal key to str
            case Final():
                self._final = message.answer

    def finish(self, error: ErrorInfo | None, join: _Join | None = None) -> Generator[None, None, Collected]:
        """Return the texts, in steps; the collector is empty then.

        Args:
            join: joins pieces of text, in steps.
        """
        # The answer and the error first: their own limits leave room beside them.
        kept = (self._final, *((error.type, error.message, error.traceback) if error else ()))
        room = self._most - sum(sys.getsizeof(text) for text in kept if text is not None)
        room -= self._most // _DISPLAY_SHARE - self._display_room
        join = join or _join
        stdout = yield from self._decode(1, room, join)
        stderr = yield from self._decode(2, room - sys.getsizeof(stdout), join)
        displays, self._displays = self._displays, []
        return Collected(stdout, stderr, displays, self._final, self._is_cut)

    def _show(self, forms: dict[str, str | bytes]) -> None:
        shown: dict[str, str | bytes] = {}
        for mime, form in forms.items():
            size = sys.getsizeof(form)
            if size > self._display_room:
                self._is_cut = True
                note = f"[{mime} left out: {self._note()}]"
                shown["text/plain"] = "\n".join(filter(None, [str(shown.get("text/plain", "")), note]))
                continue
            self._display_room -= size
            shown[mime] = form
        self._displays.append(shown)

    def _decode(self, stream: int, room: int, join: _Join) -> Generator[None, None, str]:
        data = self._output[stream]
        # Most cells write to one stream or none.
        if not data:
            return ""
        data.reverse()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces: list[str] = []
        length, width = 0, 1
        note = f"\n[... cut: {self._note()}]"
        room -= sys.getsizeof(note) + _WIDEST * _HEADER
        while data:
            part = bytes(data.pop())
            piece = decoder.decode(part, final=not data)
            length += len(piece)
            width = max(width, _width(piece))
            # A wide character late in the text widens all of it.
            if length * width > room:
                self._is_cut = True
                data.clear()
                pieces.append(note)
                break
            pieces.append(piece)
            yield
        return (yield from join(pieces))

    def _note(self) -> str:
        return f"what a cell prints, shows and answers takes at most {self._most} bytes of memory"


def _join(pieces: list[str]) -> Generator[None, None, str]:
    yield
    return "".join(pieces)


def finish(collector: CellCollector, error: ErrorInfo | None) -> Collected:
    """Run ``CellCollector.finish`` without a pause."""
    steps = collector.finish(error)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            collected: Collected = end.value
            return collected


def _width(text: str) -> int:
    # The bytes of each character; for a short text of Latin-1 a little more.
    return max(1, (sys.getsizeof(text) - _HEADER) // len(text)) if text else 1
