"""Collects what a running cell writes, shows and answers."""

from __future__ import annotations

import asyncio
import contextvars

from ...sandbox_image import protocol
from ...sandbox_image.guest_session import CellCollector
from ...sandbox_image.protocol import CellEnd, Outcome
from ..slices import decode, in_slices
from .config import CellResult, Display


class RunningCell:
    """A cell from its start to its result.

    Attributes:
        number: from 1.
        result: the cell's result, or the error that ended it.
        context: the context variables of the caller of ``execute()``; its calls are answered in copies.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.result: asyncio.Future[CellResult] = asyncio.get_running_loop().create_future()
        self.context = contextvars.copy_context()
        self._collected = CellCollector()
        self._decoding: asyncio.Task[None] | None = None

    def add(self, message: protocol.Output | protocol.Display | protocol.Final) -> None:
        """Keep an output, a display or the answer."""
        self._collected.add(message)

    def finish(self, end: CellEnd) -> None:
        """Set the result, if it is still awaited; after a long output, soon."""
        if self.result.done():
            return
        collected = self._collected
        if all(len(pieces) < 2 for pieces in collected.output.values()):
            self.result.set_result(self._make_result(end, collected.stdout, collected.stderr))
        else:
            self._decoding = asyncio.get_running_loop().create_task(self._decode(end))

    async def _decode(self, end: CellEnd) -> None:
        output = self._collected.output
        stdout = await in_slices(decode(output[1], "replace"))
        stderr = await in_slices(decode(output[2], "replace"))
        if not self.result.done():
            self.result.set_result(self._make_result(end, stdout, stderr))

    def fail(self, error: Exception) -> None:
        """Set an error in the place of the result."""
        if not self.result.done():
            self.result.set_exception(error)
            # Retrieved here too: a cancelled waiter never does, and asyncio would log it.
            self.result.exception()

    def _make_result(self, end: CellEnd, stdout: str, stderr: str) -> CellResult:
        return CellResult(
            cell=end.cell,
            outcome=Outcome(end.outcome),
            stdout=stdout,
            stderr=stderr,
            truncated=end.truncated,
            error=end.error,
            final=self._collected.final,
            elapsed=end.elapsed,
            worker_wait=end.worker_wait,
            state_lost=end.state_lost,
            dropped=end.dropped,
            usage=end.usage,
            detail=end.detail,
            display=tuple(map(Display, self._collected.displays)),
        )
