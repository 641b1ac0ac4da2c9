"""``sys.stdout`` and ``sys.stderr`` of all cells."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable

from ..text import ESCAPE_SURROGATES


class _Buffer(io.BufferedWriter):
    # Others may wrap it, and a wrapper that is garbage closes it. It must outlive them.

    def close(self) -> None:
        """Flush."""
        self.flush()


class CellStream(io.TextIOWrapper):
    """A stream for the whole session: who keeps it prints in the cell that runs.

    Args:
        is_current: whether the calling thread belongs to the running cell. Text of other threads is dropped.
    """

    # Before __init__ has run, the base class reads `closed`.
    _is_closed = False

    def __init__(self, fd: int, is_current: Callable[[], bool]) -> None:
        self._fd = fd
        self._is_current = is_current
        self._is_flushed = True
        self._raw = self._open()
        self._own_names = frozenset({*self.__dict__, "_own_names"})

    def _open(self) -> io.FileIO:
        raw = io.FileIO(self._fd, "w", closefd=False)
        # A second time too: it drops the text and the buffer that it has.
        super().__init__(_Buffer(raw), "utf-8", ESCAPE_SURROGATES, "\n", line_buffering=True)
        return raw

    @property
    def closed(self) -> bool:
        """Whether the running cell closed it."""
        return self._is_closed or super().closed

    def write(self, text: str, /) -> int:
        """Write text of the running cell."""
        return super().write(text) if self._is_current() else len(text)

    def close(self) -> None:
        """Close it for the rest of the cell."""
        if self._is_current() and not self._is_closed:
            try:
                self.flush()
            finally:
                self._is_closed = True

    def detach(self) -> io.BufferedWriter:
        """Return another buffer of the same descriptor."""
        self.flush()
        return _Buffer(io.FileIO(self._fd, "w", closefd=False))

    def leave_cell(self) -> None:
        """Drop what the last cell could not write. Call it while the descriptor is still that cell's."""
        self._is_closed = False
        if len(self.__dict__) != len(self._own_names):
            # Such as a `write` of the cell's own.
            for name in set(self.__dict__) - self._own_names:
                delattr(self, name)
        if not self._is_flushed:
            # Else the buffer would write to the new cell when it is freed.
            io.FileIO.close(self._raw)

    def enter_cell(self) -> None:
        """Begin a cell with a whole stream."""
        if not self._is_whole():
            self._raw = self._open()
        self._is_flushed = False

    def _is_whole(self) -> bool:
        try:
            settings = self.encoding, self.errors, self.line_buffering
            # Else the cell reconfigured it.
            is_ours = settings == ("utf-8", ESCAPE_SURROGATES, True)
            return is_ours and not (self._raw.closed or super().closed)
        except (AttributeError, ValueError):  # detached
            return False

    def end_cell(self) -> None:
        """Write all text of the cell."""
        with contextlib.suppress(OSError, ValueError):
            if not self._is_closed:
                io.TextIOWrapper.flush(self)
            self._is_flushed = True


class CellStreams:
    """Both streams. Each cell begins with them, and its end flushes them."""

    def __init__(self, is_current: Callable[[], bool]) -> None:
        self._streams = CellStream(1, is_current), CellStream(2, is_current)

    def leave_cell(self) -> None:
        """See ``CellStream.leave_cell``."""
        for stream in self._streams:
            stream.leave_cell()

    def enter_cell(self) -> None:
        """Begin a cell, whose descriptors are there."""
        for stream in self._streams:
            stream.enter_cell()
        sys.stdout = sys.__stdout__ = self._streams[0]  # type: ignore[misc]  # typeshed marks it Final; Python does not
        sys.stderr = sys.__stderr__ = self._streams[1]  # type: ignore[misc]  # typeshed marks it Final; Python does not

    def end_cell(self) -> None:
        """Flush them, and those that the cell put in their place."""
        others = [stream for stream in (sys.stdout, sys.stderr) if stream not in self._streams]
        if others:
            # First: those of the cell may raise anything.
            for stream in self._streams:
                with contextlib.suppress(OSError, ValueError):
                    io.TextIOWrapper.flush(stream)
        for other in others:
            try:
                other.flush()
            except (OSError, ValueError, AttributeError):
                continue  # the cell closed it, or it is no stream
        for stream in self._streams:
            stream.end_cell()
