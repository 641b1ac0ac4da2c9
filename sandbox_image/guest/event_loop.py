"""Run the code of a cell that has ``await`` at its top level."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any

from .cell_compiler import Cell

if TYPE_CHECKING:
    import asyncio


class CellLoop:
    """An event loop for all cells, made by the first that needs it.

    It runs while a cell awaits. So tasks and clients live on in later cells, and ``asyncio.run`` works in
    cells without ``await``.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._is_interrupted = False

    def run(self, cell: Cell, namespace: dict[str, Any]) -> object:
        """Run a cell in the namespace; return the value of its last expression."""
        codes = [*cell.statements, *([cell.last] if cell.last is not None else [])]
        if any(code.co_flags & inspect.CO_COROUTINE for code in codes):
            value = self._await(_run(codes, namespace))
        else:
            value = None
            for code in codes:
                value = eval(code, namespace)  # noqa: S307 - what this process is for
        if cell.after is not None:
            exec(cell.after, namespace)  # noqa: S102 - as above
        return value

    def interrupt(self) -> None:
        """Interrupt the cell: cancel its task if the loop waits, else raise KeyboardInterrupt."""
        loop, task = self._loop, self._task
        if loop is not None and task is not None and loop.is_running():
            import asyncio

            # An exception inside of the loop's own work would break it for later cells.
            if asyncio.current_task(loop) is None:
                self._is_interrupted = True
                loop.call_soon_threadsafe(task.cancel)
                return
        raise KeyboardInterrupt

    def _await(self, coroutine: Coroutine[Any, Any, object]) -> object:
        import asyncio

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        loop, self._is_interrupted = self._loop, False
        self._task = task = loop.create_task(coroutine)
        try:
            return loop.run_until_complete(task)
        except BaseException as error:
            if not task.done():
                # The interrupt came between two steps. Its clean-up runs now, not in the next cell.
                task.cancel()
                loop.run_until_complete(asyncio.wait([task]))
            error.__traceback__ = _in_cell(error.__traceback__)
            if self._is_interrupted and isinstance(error, asyncio.CancelledError):
                raise KeyboardInterrupt().with_traceback(error.__traceback__) from None
            raise
        finally:
            self._task = None


async def _run(codes: list[CodeType], namespace: dict[str, Any]) -> object:
    value: Any = None
    for code in codes:
        value = eval(code, namespace)  # noqa: S307 - what this process is for
        if code.co_flags & inspect.CO_COROUTINE:
            value = await value
    return value


def _in_cell(trace: TracebackType | None) -> TracebackType | None:
    # Without the frames of asyncio that lead to the cell.
    found = trace
    while found is not None and not found.tb_frame.f_code.co_filename.startswith("<cell "):
        found = found.tb_next
    return found or trace
