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
    """The endpoint is overloaded, out of reach, or sends nonsense."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rejected(HandlerError):
    """The endpoint refuses this request, however often it is sent."""


class NoAccess(Rejected):
    """No request succeeds: the key, the account or the model's name is wrong."""


class ContextTooLong(HandlerError):
    """The messages do not fit the window of the model."""
