"""What cells print, where it is the shim that reads the pipes of their fd 1 and 2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Literal

from ...sandbox_image import protocol
from ...sandbox_image.guest.pipes import Pipes, read
from .attached import Attached
from .isolated_process import Walls
from .message_stream import MessageStream

_NEW_PIPES_SECONDS = 0.05
_DISCARD = protocol.encode(protocol.Discard())
_UNREAD_ORDERS = 16

Piece = tuple[Literal[1, 2], bytes]
"""Of which stream, and what."""


class CellOutput:
    """What of the running cell's output is read here: nothing, where a container's init reads it, and sends it as frames."""

    look_at: float | None = None
    """When ``look`` is due."""

    def prepare(self) -> None:
        """Have pipes ready before there is a cell that waits for them, if they can be had."""

    def begin(self, now: float) -> list[int]:
        """A cell begins; the writing ends of its pipes, for the repl.

        Raises:
            OSError: no pipes can be had.
        """
        return []

    def readable(self) -> list[int]:
        """What to wait on: what the running cell prints; where none runs, what something may still print."""
        return []

    def read(self, fd: int) -> Piece | None:
        """A piece of what the running cell printed."""

    def drain(self) -> Iterable[Piece]:
        """What of the running cell has not been read."""
        return ()

    def end(self) -> None:
        """The cell has ended."""

    def look(self, now: float) -> None:
        """See whether the repl has put the running cell's pipes in the place of the last one's."""


class Piped(CellOutput):
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
        self._last: list[int] = []
        self._runs = False

    def prepare(self) -> None:
        """See ``CellOutput.prepare``."""
        with contextlib.suppress(OSError):
            self._make()

    def begin(self, now: float) -> list[int]:
        """See ``CellOutput.begin``."""
        self._make()
        self._runs = True
        if self._last:
            self.look_at = now + _NEW_PIPES_SECONDS
        writers, self._writers = self._writers, []
        return writers

    def readable(self) -> list[int]:
        """See ``CellOutput.readable``."""
        return list(self._pipes.streams) if self._runs else self._last

    def read(self, fd: int) -> Piece | None:
        """See ``CellOutput.read``."""
        if not self._runs:
            self._let_go(fd)
            return None
        stream = self._pipes.streams[fd]
        data = self._pipes.read(fd)
        return (stream, data) if data else None

    def drain(self) -> Iterable[Piece]:
        """See ``CellOutput.drain``."""
        if self._runs:
            yield from self._pipes.drain()

    def end(self) -> None:
        """See ``CellOutput.end``."""
        self._let_the_last_go()
        self._last = self._pipes.retire()
        self._runs = False

    def look(self, now: float) -> None:
        """See ``CellOutput.look``."""
        if self.look_at is not None and now >= self.look_at:
            self._let_the_last_go()

    def _make(self) -> None:
        if not self._pipes.streams:
            self._writers = self._pipes.make()

    def _let_the_last_go(self) -> None:
        self.look_at = None
        for fd in list(self._last):
            self._let_go(fd)

    def _let_go(self, fd: int) -> None:
        self._last.remove(fd)
        if read(fd) == b"":
            return  # nobody can write there any more
        if len(self._init) < _UNREAD_ORDERS:
            self._init.send(_DISCARD, [fd])
        else:
            os.close(fd)


def output_of(box: Walls | Attached, init: MessageStream) -> CellOutput:
    """As the guest has it; ``init`` is the stream of its init."""
    return Piped(box.owner, init) if isinstance(box, Walls) else CellOutput()
