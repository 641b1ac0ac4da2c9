"""Errors of model handlers, by what the caller can do.

::

    HandlerError
    ├── Unavailable       retry later (rate limit, 5xx, connection); may know ``retry_after``
    ├── Rejected          do not retry (bad request, refused)
    │   └── NoAccess      nor anything else there: no key or a wrong one, no credit, no such model
    └── ContextTooLong    the caller may shorten the messages
"""

from __future__ import annotations


class HandlerError(Exception):
    """A model did not answer."""


class Unavailable(HandlerError):
    """Not now: the endpoint is overloaded, out of reach, or answered what cannot be understood."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rejected(HandlerError):
    """Not this request, however often it is sent."""


class NoAccess(Rejected):
    """Not this request nor any other to this model: the key, the account or the model's name is wrong."""


class ContextTooLong(HandlerError):
    """The messages do not fit the model's window."""
