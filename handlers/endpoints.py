"""Several endpoints of one model: choose the next one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager

from .errors import HandlerError, Unavailable

_FIRST_REST = 1.0
# Seconds that an endpoint rests after its first failure, and at most. Each failure doubles them.
_LONGEST_REST = 60.0


class Endpoint:
    """One endpoint in one event loop."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.in_flight = 0
        self.asked = 0
        self.rests_until = -math.inf
        self._failures = 0
        self._failed_at = -math.inf

    def ready(self, now: float) -> bool:
        """Whether it may be asked. After a rest, one request tests it."""
        return self._failures == 0 or (now >= self.rests_until and self.in_flight == 0)

    def answered(self) -> None:
        """Record a success."""
        self._failures = 0

    def failed(self, asked_at: float, now: float, retry_after: float | None = None) -> None:
        """Let it rest. Requests that failed together count once."""
        # Requests that were under way together fail for one reason.
        if asked_at <= self._failed_at:
            return
        rest = _FIRST_REST * 2.0 ** min(self._failures, 10)
        self._failures += 1
        self._failed_at = now
        self.rests_until = now + min(max(rest, retry_after or 0.0), _LONGEST_REST)


class Endpoints:
    """All endpoints, balanced by load."""

    def __init__(self, urls: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.all = [Endpoint(url) for url in urls]
        self._clock = clock

    @contextmanager
    def asking(self, endpoint: Endpoint) -> Generator[None]:
        """Count a request and record its end."""
        asked_at = self._clock()
        endpoint.in_flight += 1
        endpoint.asked += 1
        try:
            yield
        except Unavailable as error:
            endpoint.failed(asked_at, self._clock(), error.retry_after)
            raise
        except HandlerError:
            endpoint.answered()
            raise
        else:
            endpoint.answered()
        finally:
            endpoint.in_flight -= 1

    def choose(self, tried: Collection[Endpoint]) -> tuple[Endpoint, bool]:
        """Return the endpoint for the next attempt, and whether it is the last."""
        now = self._clock()
        ready = [each for each in self.all if each not in tried and each.ready(now)]
        if not ready:
            left = [each for each in self.all if each not in tried]
            return min(left, key=lambda each: (each.rests_until, each.in_flight)), True
        return min(ready, key=lambda each: (each.in_flight, each.asked)), len(ready) == 1
