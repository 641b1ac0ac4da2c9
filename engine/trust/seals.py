"""Marks by which a user's own files are recognised: an HMAC-SHA-256 with a secret that only this user has.

A file without a valid one may come from anybody: unpacked from an archive it belongs to the user all the same.
"""

from __future__ import annotations

import hashlib
import hmac

from .settings import user_secret


class Seal:
    """Makes and checks the marks of one purpose. The secret is read, or made, when it is opened."""

    def __init__(self, purpose: str, secret: bytes | None) -> None:
        """Take a secret; None makes no mark, and accepts none. See ``open``."""
        self._key = None if secret is None else hmac.digest(secret, purpose.encode(), hashlib.sha256)

    @classmethod
    def open(cls, purpose: str) -> Seal:
        """Use the secret of this user."""
        return cls(purpose, user_secret())

    def mark(self, *parts: bytes) -> str:
        """Return the mark of some data in hexadecimal digits, empty where this user can have no secret."""
        if self._key is None:
            return ""
        # Hashed one by one, so that no two lists of parts are the same text.
        digests = b"".join(hashlib.sha256(part).digest() for part in parts)
        return hmac.digest(self._key, digests, hashlib.sha256).hex()

    def is_own(self, mark: bytes | str, *parts: bytes) -> bool:
        """Return whether this user made the mark for this data."""
        given = mark.encode("utf-8", "replace") if isinstance(mark, str) else mark
        return self._key is not None and hmac.compare_digest(given, self.mark(*parts).encode())
