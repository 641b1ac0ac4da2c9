"""Errors of model handlers, by what the caller can do.

::

    HandlerError
    ├── Unavailable       retry later (rate limit, 5xx, connection); may have ``retry_after``
    ├── Rejected          do not retry (bad request, refused)
    │   └── NoAccess      no other request succeeds there: wrong key, no credit, no such model
    └── ContextTooLong    the caller may shorten the messages
"""

from __future__ import annotations


class HandlerError(Exception):
    """A model gave no answer."""


class Unavailable(HandlerError):
    """The endpoint is overloaded, out of reach, or sent a reply that cannot be read."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rejected(HandlerError):
    """The endpoint refuses this request, however often it is sent."""


class NoAccess(Rejected):
    """The endpoint refuses every request: the key, the account or the name of the model is wrong."""


class ContextTooLong(HandlerError):
    """The messages do not fit the window of the model."""
