"""A shared amount, taken in parts, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class Credit:
    """A semaphore over an amount, without overtaking."""

    def __init__(self, amount: int) -> None:
        self._left = amount
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def close(self, error: Exception) -> None:
        """Fail all waiters."""
        while self._waiting:
            _, granted = self._waiting.popleft()
            if not granted.done():
                granted.set_exception(error)

    async def acquire(self, part: int) -> None:
        """Wait for a part and take it."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((part, granted))
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                # The cancelled waiter may have blocked smaller parts behind it.
                self._grant()
            else:
                self.release(part)
            raise

    def release(self, part: int) -> None:
        """Give a part back."""
        self._left += part
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            part, granted = self._waiting[0]
            # Small parts do not overtake large ones.
            if not granted.done() and part > self._left:
                return
            self._waiting.popleft()
            if not granted.done():
                self._left -= part
                granted.set_result(None)
