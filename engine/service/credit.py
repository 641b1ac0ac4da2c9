"""A shared amount that is taken in parts, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class Credit:
    """An amount that is taken in parts and given back."""

    def __init__(self, amount: int) -> None:
        self._left = amount
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def close(self, error: Exception) -> None:
        """Fail everybody who waits."""
        while self._waiting:
            _, granted = self._waiting.popleft()
            if not granted.done():
                granted.set_exception(error)

    async def take(self, part: int) -> None:
        """Wait until there is room for a part, and take it."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((part, granted))
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                self._grant()  # it may have stood before others
            else:
                self.give(part)
            raise

    def give(self, part: int) -> None:
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
