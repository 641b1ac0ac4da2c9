"""Mark files that the user's own engine wrote, and check the marks."""

from __future__ import annotations

import hashlib
import hmac

from .settings import user_secret


class Seal:
    """Make and check marks for one purpose: HMAC-SHA-256 with the user's secret."""

    # Without a secret no mark is made, and none is accepted.
    def __init__(self, purpose: str, secret: bytes | None) -> None:
        self._key = None if secret is None else hmac.digest(secret, purpose.encode(), hashlib.sha256)

    @classmethod
    def open(cls, purpose: str) -> Seal:
        """Read or make this user's secret."""
        return cls(purpose, user_secret())

    def mark(self, *parts: bytes) -> str:
        """Return the mark of some data; empty without a secret."""
        if self._key is None:
            return ""
        # Hashed one by one: else two lists of parts could join to the same bytes.
        digests = b"".join(hashlib.sha256(part).digest() for part in parts)
        return hmac.digest(self._key, digests, hashlib.sha256).hex()

    # The owner of a file proves nothing: what a user unpacks from an archive belongs to that user.
    def is_own(self, mark: bytes | str, *parts: bytes) -> bool:
        """Return whether the mark is this user's and fits the data."""
        given = mark.encode("utf-8", "replace") if isinstance(mark, str) else mark
        return self._key is not None and hmac.compare_digest(given, self.mark(*parts).encode())
