"""Limits of requests and tokens per minute."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

MINUTE = 60.0

# Seconds between checks: another event loop may have corrected a use meanwhile.
_POLL_SECONDS = 0.25


@dataclass(eq=False, slots=True)
class Use:
    """What one request takes. ``tokens`` is estimated at first."""

    tokens: int
    taken_at: float = math.nan


class RateLimit:
    """Limits in any 60 seconds; None is no limit. Thread-safe."""

    def __init__(
        self, requests: int | None, tokens: int | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_requests = math.inf if requests is None else requests
        self._max_tokens = math.inf if tokens is None else tokens
        self._clock = clock
        self._lock = Lock()
        self._uses: deque[Use] = deque()
        self._tokens = 0

    def take(self, use: Use) -> float:
        """Take a use and return 0.0, or return the seconds to wait."""
        with self._lock:
            now = self._clock()
            while self._uses and self._uses[0].taken_at + MINUTE <= now:
                self._tokens -= self._uses.popleft().tokens
            # A use above the limit is taken once the minute is empty.
            wait = self._wait(min(use.tokens, self._max_tokens), now)
            if wait == 0.0:
                use.taken_at = now
                self._uses.append(use)
                self._tokens += use.tokens
            return wait

    def correct(self, use: Use, tokens: int) -> None:
        """Replace the estimate of a use that was taken."""
        with self._lock:
            if self._uses and self._uses[0].taken_at <= use.taken_at:  # else it has left the window
                self._tokens += tokens - use.tokens
            use.tokens = tokens

    def _wait(self, tokens: float, now: float) -> float:
        requests, used, wait = len(self._uses), self._tokens, 0.0
        for use in self._uses:
            if requests < self._max_requests and used + tokens <= self._max_tokens:
                break
            requests, used, wait = requests - 1, used - use.tokens, use.taken_at + MINUTE - now
        return wait


async def admit(limit: RateLimit, use: Use, turn: asyncio.Lock) -> None:
    """Wait until the use is taken, in the order of ``turn``."""
    async with turn:
        wait = limit.take(use)
        while wait > 0.0:
            await asyncio.sleep(min(wait, _POLL_SECONDS))
            wait = limit.take(use)
