"""Report that a request failed and will be sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from .errors import Unavailable, UnavailableReason, Unreachable

RetryReason = Literal["rate_limit", "timeout", "unreachable", "unavailable"]

REASON_WORDS: Mapping[RetryReason, str] = {
    "rate_limit": "rate-limited",
    "timeout": "timed out",
    "unreachable": "no connection",
    "unavailable": "endpoint failed",
}

# By status.
REASONS: Mapping[int, UnavailableReason] = {408: "timeout", 429: "rate_limit", 504: "timeout"}

# Exceptions by name: the library is httpx or httpx2, as the SDK has it.
NOT_MADE = ("ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol")


@dataclass(frozen=True, slots=True)
class Retry:
    """A request failed and will be sent again.

    Attributes:
        seconds: the wait before that.
        attempt: the number of the next attempt, from 2.
        attempts: the most that are made.
    """

    reason: RetryReason
    seconds: float
    attempt: int
    attempts: int

    @property
    def words(self) -> str:
        """The reason in plain words."""
        return REASON_WORDS[self.reason]


Listener = Callable[[Retry], None]

# The engine calls a handler without an argument for this, since users write handlers, too.
_listener: ContextVar[tuple[asyncio.AbstractEventLoop, Listener] | None] = ContextVar(
    "listener of retries", default=None
)


def listen_in_this_task(listener: Listener) -> None:
    """Call ``listener`` for retries of the handlers that the running task calls."""
    _listener.set((asyncio.get_running_loop(), listener))


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Do so within the block."""
    before = _listener.set((asyncio.get_running_loop(), listener))
    try:
        yield
    finally:
        _listener.reset(before)


def report_retry(retry: Retry) -> None:
    """Report that the request of the running task will be sent again. Handlers call it before they wait."""
    found = _listener.get()
    if found is None:
        return
    loop, listener = found
    try:
        is_here = asyncio.get_running_loop() is loop
    except RuntimeError:
        is_here = False
    if is_here:
        listener(retry)
    else:
        # A plain ``chat`` runs in a thread, and may have an event loop of its own. The run may have ended.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(listener, retry)


def reason_of(error: Unavailable) -> RetryReason:
    """Return the reason of a retry after this error."""
    return "unreachable" if isinstance(error, Unreachable) else error.reason or "unavailable"
