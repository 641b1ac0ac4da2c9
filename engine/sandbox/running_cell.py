"""Collects what a running cell writes, shows and answers."""

from __future__ import annotations

import asyncio
import contextvars

from ...sandbox_image import protocol
from ...sandbox_image.guest_session import CellCollector, Collected
from ...sandbox_image.protocol import CellEnd, Outcome
from ..slices import Steps, finish, in_slices, join
from .cell_details import detail_of
from .config import CellResult, Display


class RunningCell:
    """A cell from its start to its result.

    Attributes:
        number: from 1.
        result: the cell's result, or the error that ended it.
        context: the context variables of the caller of ``execute()``; its calls are answered in copies.
    """

    def __init__(self, number: int, result_bytes: int, output_bytes: int) -> None:
        self.number = number
        self.result: asyncio.Future[CellResult] = asyncio.get_running_loop().create_future()
        self.context = contextvars.copy_context()
        self._collector = CellCollector(result_bytes)
        self._output_bytes = output_bytes
        self._decoding: asyncio.Task[None] | None = None

    def add(self, message: protocol.Output | protocol.Display | protocol.Final) -> None:
        """Keep an output, a display or the answer."""
        self._collector.add(message)

    def finish(self, end: CellEnd) -> None:
        """Set the result, if it is still awaited; after a long output, soon."""
        if self.result.done():
            return
        steps = self._collector.finish(end.error, join)
        if self._collector.is_short:
            self.result.set_result(self._make_result(end, finish(steps)))
        else:
            self._decoding = asyncio.get_running_loop().create_task(self._decode(end, steps))

    async def _decode(self, end: CellEnd, steps: Steps[Collected]) -> None:
        collected = await in_slices(steps)
        if not self.result.done():
            self.result.set_result(self._make_result(end, collected))

    def fail(self, error: Exception) -> None:
        """Set an error in the place of the result."""
        if not self.result.done():
            self.result.set_exception(error)
            # Retrieved here too: a cancelled waiter never does, and asyncio would log it.
            self.result.exception()

    def _make_result(self, end: CellEnd, collected: Collected) -> CellResult:
        return CellResult(
            cell=end.cell,
            outcome=Outcome(end.outcome),
            stdout=collected.stdout,
            stderr=collected.stderr,
            truncated=end.truncated or collected.is_cut,
            error=end.error,
            final=collected.final,
            elapsed=end.elapsed,
            worker_wait=end.worker_wait,
            state_lost=end.state_lost,
            dropped=end.dropped,
            usage=end.usage,
            detail=detail_of(end, self._output_bytes),
            display=tuple(map(Display, collected.displays)),
        )
