"""Errors of model handlers, by what the caller can do.

::

    HandlerError
    ├── Unavailable       retry later; may have ``retry_after`` and a ``reason``
    │   └── Unreachable   start the endpoint, or name another address
    ├── Rejected          do not retry
    │   └── NoAccess      nor anything else there
    └── ContextTooLong    shorten the messages
"""

from __future__ import annotations

from typing import Literal

UnavailableReason = Literal["rate_limit", "timeout"]


class HandlerError(Exception):
    """A model gave no answer.

    Attributes:
        role: of the model in a run, as "supervisor"; the engine sets it.
    """

    role: str = ""


class Unavailable(HandlerError):
    """The endpoint is overloaded, out of reach or broken."""

    def __init__(
        self, message: str, *, retry_after: float | None = None, reason: UnavailableReason | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason: UnavailableReason | None = reason


class Unreachable(Unavailable):
    """No connection was made: refused, an unknown host, or no answer to the attempt."""


class Rejected(HandlerError):
    """The endpoint will never accept this request."""


class NoAccess(Rejected):
    """No request can succeed: wrong key, account or model name."""


class ContextTooLong(HandlerError):
    """The messages exceed the model's window."""
