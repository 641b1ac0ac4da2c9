"""Run one client's calls one after another, and open a new session after one that was lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from anyio import CancelScope

from .session import Cell, Files, Session, SessionError, SessionLost

T = TypeVar("T")


class SessionQueue:
    """One client's session. Its owner must call ``close``."""

    def __init__(self, open_session: Callable[[], Coroutine[Any, Any, Session]]) -> None:
        self._open = open_session
        self._opening: asyncio.Task[Session] | None = None
        self._lock = asyncio.Lock()

    def open_ahead(self) -> None:
        """Start to open the session in the background."""
        # A failed opening is tried again.
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.get_running_loop().create_task(self._open())

    async def opened(self) -> Session:
        """Return the session; open it if needed.

        Raises:
            Exception: it cannot be opened.
        """
        self.open_ahead()
        assert self._opening is not None
        # Shielded: the opening goes on after a cancelled call.
        return await asyncio.shield(self._opening)

    async def execute(self, code: str, timeout: float) -> Cell:  # noqa: ASYNC109 - the session keeps it
        """See ``Session.execute``. If the code ended the session, open a new one before returning."""
        async with self._session() as session:
            cell = await _finish(session.execute(code, timeout))
            if cell.lost:
                try:
                    await _finish(session.reset())
                except SessionError as error:
                    cell = replace(cell, detail=f"{cell.detail}; a new session did not start: {error}")
            return cell

    async def reset(self) -> None:
        """See ``Session.reset``."""
        async with self._lock:
            await _finish((await self.opened()).reset())

    async def put(self, path: str, data: bytes) -> None:
        """See ``Session.put``."""
        async with self._session() as session:
            await _finish(session.put(path, data))

    async def get(self, path: str, most: int) -> bytes:
        """See ``Session.get``."""
        async with self._session() as session:
            return await session.get(path, most)

    async def list(self, most: int) -> Files:
        """See ``Session.list``."""
        async with self._session() as session:
            return await session.list(most)

    async def close(self) -> None:
        """End the session, even during a call."""
        if self._opening is None:
            return
        await asyncio.wait([self._opening])
        if self._opening.exception() is None:
            await self._opening.result().close()

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[Session]:
        async with self._lock:
            session = await self.opened()
            try:
                yield session
            except SessionLost as lost:
                # Replaced now, so that the next call works.
                await _finish(session.reset())
                raise SessionLost(f"{lost}. A new session has begun; what the old one had is gone") from lost


async def _finish(work: Awaitable[T]) -> T:
    # Work that must not stop half-way: a cancelled call waits for its end.
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        # The SDK's scope cancels repeatedly.
        with CancelScope(shield=True):
            await asyncio.wait([task])
        raise
