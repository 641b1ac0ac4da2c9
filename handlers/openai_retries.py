"""Report when OpenAI's SDK waits before the next attempt, and why."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from .retries import NOT_MADE, REASONS, RetryReason

if TYPE_CHECKING:
    from openai import AsyncOpenAI


def retry_reason(failure: int | Exception) -> RetryReason:
    """Return the reason of a retry after a status, or an exception of the HTTP library."""
    if isinstance(failure, int):
        return REASONS.get(failure, "unavailable")
    names = {kind.__name__ for kind in type(failure).__mro__}
    if not names.isdisjoint(NOT_MADE):
        return "unreachable"
    return "timeout" if "TimeoutException" in names else "unavailable"


@cache
def reporting_client(on_wait: Callable[[float, int], None]) -> type[AsyncOpenAI]:
    """Return the SDK's client. It calls ``on_wait(seconds, retries_left)`` before it tries again."""
    from openai import AsyncOpenAI

    class Client(AsyncOpenAI):
        # The SDK has no hook for it. All versions since 1.0 compute the wait here, and nowhere else. A later
        # version that does not would report nothing, and still try again.
        def _calculate_retry_timeout(self, remaining_retries: int, *args: Any, **options: Any) -> float:
            seconds = super()._calculate_retry_timeout(remaining_retries, *args, **options)
            on_wait(seconds, remaining_retries)
            return seconds

    return Client
