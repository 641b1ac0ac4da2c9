"""Errors of model handlers, by what the caller can do.

::

    HandlerError
    ├── Unavailable       retry later; may have ``retry_after``
    ├── Rejected          do not retry
    │   └── NoAccess      nor anything else there
    └── ContextTooLong    shorten the messages
"""

from __future__ import annotations


class HandlerError(Exception):
    """A model gave no answer."""


class Unavailable(HandlerError):
    """The endpoint is overloaded, out of reach or broken."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rejected(HandlerError):
    """The endpoint will never accept this request."""


class NoAccess(Rejected):
    """No request can succeed: wrong key, account or model name."""


class ContextTooLong(HandlerError):
    """The messages exceed the model's window."""
