"""Several endpoints of one model: choose the next one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager

from .errors import HandlerError, Unavailable

# Seconds without requests after the first failure, and at most. Each failure doubles them.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0


class Endpoint:
    """One endpoint in one event loop."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.in_flight = 0
        self.request_count = 0
        self.paused_until = -math.inf
        self._failures = 0
        self._failed_at = -math.inf

    def ready(self, now: float) -> bool:
        """Return whether it may be used."""
        # After a pause, one request tests it.
        return self._failures == 0 or (now >= self.paused_until and self.in_flight == 0)

    def record_success(self) -> None:
        """Record a success."""
        self._failures = 0

    def record_failure(self, asked_at: float, now: float, retry_after: float | None = None) -> None:
        """Pause the endpoint."""
        # Requests that were under way together fail for one reason, and count once.
        if asked_at <= self._failed_at:
            return
        pause = _FIRST_PAUSE * 2.0 ** min(self._failures, 10)
        self._failures += 1
        self._failed_at = now
        self.paused_until = now + min(max(pause, retry_after or 0.0), _LONGEST_PAUSE)


class Endpoints:
    """All endpoints, balanced by load."""

    def __init__(self, urls: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.all = [Endpoint(url) for url in urls]
        self._clock = clock

    @contextmanager
    def track_request(self, endpoint: Endpoint) -> Generator[None]:
        """Count a request and record its end."""
        asked_at = self._clock()
        endpoint.in_flight += 1
        endpoint.request_count += 1
        try:
            yield
        except Unavailable as error:
            endpoint.record_failure(asked_at, self._clock(), error.retry_after)
            raise
        # The endpoint works; only this request failed.
        except HandlerError:
            endpoint.record_success()
            raise
        else:
            endpoint.record_success()
        finally:
            endpoint.in_flight -= 1

    def choose(self, tried: Collection[Endpoint]) -> tuple[Endpoint, bool]:
        """Return the next endpoint, and whether it is the last."""
        now = self._clock()
        ready = [each for each in self.all if each not in tried and each.ready(now)]
        if not ready:
            left = [each for each in self.all if each not in tried]
            return min(left, key=lambda each: (each.paused_until, each.in_flight)), True
        return min(ready, key=lambda each: (each.in_flight, each.request_count)), len(ready) == 1
