"""Read the output pipes of cells."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Literal

from ...sandbox_image import protocol
from ...sandbox_image.guest.pipes import Pipes, read
from .attached import AttachedContainer
from .isolated_process import IsolatedProcess
from .message_stream import MessageStream

# After this time the repl has replaced the old pipes with the new ones.
_NEW_PIPES_SECONDS = 0.05
_DISCARD = protocol.encode(protocol.Discard())
_MAX_UNREAD_MESSAGES = 16
# Pipes are read so often, or again at once if much came. A guest that writes single bytes would else make
# shim and engine work a hundred times as much as itself.
_PAUSE_SECONDS = 0.002
_MUCH = 32 << 10

# The stream and its bytes.
Piece = tuple[Literal[1, 2], bytes]


class OutputReader:
    """Reads nothing: a container's init sends output as frames.

    Attributes:
        release_at: when to call ``release_if_due``.
        read_at: when ``descriptors`` returns the pipes again.
    """

    def __init__(self) -> None:
        self.release_at: float | None = None
        self.read_at: float | None = None

    def prepare(self) -> None:
        """Make the next cell's pipes ahead."""

    def begin_cell(self, now: float) -> list[int]:
        """Start a cell; return the writing ends.

        Raises:
            OSError: no pipes.
        """
        return []

    def descriptors(self, now: float) -> list[int]:
        """Return the descriptors to poll."""
        return []

    def read(self, fd: int, now: float) -> Piece | None:
        """Read a piece."""

    def drain(self) -> Iterable[Piece]:
        """Read the rest of the cell."""
        return ()

    def end_cell(self) -> None:
        """End the cell."""

    def release_if_due(self, now: float) -> None:
        """Release the last cell's pipes."""


class PipeReader(OutputReader):
    """Reads pipes; ``uid`` is the guest's on the host."""

    # If only the repl held the other ends of the last pipes, they end when the next cell replaces them.
    # Another process that holds them may write for ever. Then init gets them and discards what comes, in the
    # sandbox's own time. In a new cell they are checked once, later or at its end. Polling them would wake
    # the shim twice more per cell.

    def __init__(self, uid: int, init: MessageStream) -> None:
        self.release_at: float | None = None
        self.read_at: float | None = None
        self._init = init
        self._pipes = Pipes(uid if uid != os.geteuid() else None)
        self._writers: list[int] = []
        self._old: list[int] = []
        self._is_running = False

    def prepare(self) -> None:
        """See ``OutputReader.prepare``."""
        with contextlib.suppress(OSError):
            self._ensure_pipes()

    def begin_cell(self, now: float) -> list[int]:
        """See ``OutputReader.begin_cell``."""
        self._ensure_pipes()
        self._is_running = True
        # The end of a short cell reads its output, without a wakeup of its own.
        self.read_at = now + _PAUSE_SECONDS
        if self._old:
            self.release_at = now + _NEW_PIPES_SECONDS
        writers, self._writers = self._writers, []
        return writers

    def descriptors(self, now: float) -> list[int]:
        """See ``OutputReader.descriptors``."""
        if self.read_at is not None and now >= self.read_at:
            self.read_at = None
        if not self._is_running:
            return self._old
        return list(self._pipes.streams) if self.read_at is None else []

    def read(self, fd: int, now: float) -> Piece | None:
        """See ``OutputReader.read``."""
        if not self._is_running:
            self._release(fd)
            return None
        stream = self._pipes.streams[fd]
        data = self._pipes.read(fd)
        if not data:
            return None
        if len(data) < _MUCH:
            self.read_at = now + _PAUSE_SECONDS
        return stream, data

    def drain(self) -> Iterable[Piece]:
        """See ``OutputReader.drain``."""
        if self._is_running:
            yield from self._pipes.drain()

    def end_cell(self) -> None:
        """See ``OutputReader.end_cell``."""
        self._release_old_pipes()
        self._old = self._pipes.retire()
        self._is_running = False
        self.read_at = None

    def release_if_due(self, now: float) -> None:
        """See ``OutputReader.release_if_due``."""
        if self.release_at is not None and now >= self.release_at:
            self._release_old_pipes()

    def _ensure_pipes(self) -> None:
        if not self._pipes.streams:
            self._writers = self._pipes.make()

    def _release_old_pipes(self) -> None:
        self.release_at = None
        for fd in list(self._old):
            self._release(fd)

    def _release(self, fd: int) -> None:
        self._old.remove(fd)
        # At its end it is closed already.
        if read(fd) == b"":
            return
        if len(self._init) < _MAX_UNREAD_MESSAGES:
            self._init.send(_DISCARD, [fd])
        else:
            # An init that does not read gets no more; the writers get EPIPE.
            os.close(fd)


def output_reader(process: IsolatedProcess | AttachedContainer, init: MessageStream) -> OutputReader:
    """Return the reader for a guest."""
    return PipeReader(process.uid, init) if isinstance(process, IsolatedProcess) else OutputReader()
