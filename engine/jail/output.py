"""What cells print, where it is the shim that reads the pipes of their fd 1 and 2."""

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

_NEW_PIPES_SECONDS = 0.05
_DISCARD = protocol.encode(protocol.Discard())
_UNREAD_ORDERS = 16

Piece = tuple[Literal[1, 2], bytes]
"""Of which stream, and what."""


class OutputReader:
    """What of the running cell's output is read here: nothing, where a container's init reads it, and sends it as frames."""

    release_at: float | None = None
    """When ``release_if_due`` is due."""

    def prepare(self) -> None:
        """Have pipes ready before there is a cell that waits for them, if they can be had."""

    def begin_cell(self, now: float) -> list[int]:
        """A cell begins; the writing ends of its pipes, for the repl.

        Raises:
            OSError: no pipes can be had.
        """
        return []

    def descriptors(self) -> list[int]:
        """What to wait on: what the running cell prints; where none runs, what something may still print."""
        return []

    def read(self, fd: int) -> Piece | None:
        """A piece of what the running cell printed."""

    def drain(self) -> Iterable[Piece]:
        """What of the running cell has not been read."""
        return ()

    def end_cell(self) -> None:
        """The cell has ended."""

    def release_if_due(self, now: float) -> None:
        """See whether the repl has put the running cell's pipes in the place of the last one's."""


class PipeReader(OutputReader):
    """The pipes of the running cell, those that are ready for the next, and those of the last.

    The last cell's stay here until something is written to them, or the next cell has its own: when the repl alone had
    their other ends they come to their end then. Where something else has them, which may write for ever, they go to
    init, whose time is the sandbox's, and which throws away what comes. In a new cell they are looked at once, a moment
    later, or at its end: to wait on them would be two more wake-ups of every cell.

    Args:
        owner: the guest's id outside.
        init: the stream of the guest's init.
    """

    def __init__(self, owner: int, init: MessageStream) -> None:
        self._init = init
        self._pipes = Pipes(owner if owner != os.geteuid() else None)
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
        if self._old:
            self.release_at = now + _NEW_PIPES_SECONDS
        writers, self._writers = self._writers, []
        return writers

    def descriptors(self) -> list[int]:
        """See ``OutputReader.descriptors``."""
        return list(self._pipes.streams) if self._is_running else self._old

    def read(self, fd: int) -> Piece | None:
        """See ``OutputReader.read``."""
        if not self._is_running:
            self._release(fd)
            return None
        stream = self._pipes.streams[fd]
        data = self._pipes.read(fd)
        return (stream, data) if data else None

    def drain(self) -> Iterable[Piece]:
        """See ``OutputReader.drain``."""
        if self._is_running:
            yield from self._pipes.drain()

    def end_cell(self) -> None:
        """See ``OutputReader.end_cell``."""
        self._release_old_pipes()
        self._old = self._pipes.retire()
        self._is_running = False

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
        if read(fd) == b"":
            return  # nobody can write there any more
        if len(self._init) < _UNREAD_ORDERS:
            self._init.send(_DISCARD, [fd])
        else:
            os.close(fd)


def output_reader(process: IsolatedProcess | AttachedContainer, init: MessageStream) -> OutputReader:
    """As the guest has it; ``init`` is the stream of its init."""
    return PipeReader(process.uid, init) if isinstance(process, IsolatedProcess) else OutputReader()
