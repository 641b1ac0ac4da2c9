"""Long request bodies, coded in slices: the SDK codes a whole body at once, and the event loop waits."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence

from .base import Message
from .errors import Rejected
from .slices import Steps

# Characters of messages that the SDK codes, in 1 ms at most.
_SHORT = 1 << 16

# Characters that are coded and sent at once. 32 requests may send theirs in one turn of the loop.
_PIECE = 1 << 16


def is_long(messages: Sequence[Message]) -> bool:
    """Return whether the SDK should not code these messages."""
    return sum(len(message["content"]) for message in messages) > _SHORT


class CodedContents:
    """The contents of messages as JSON. The SDK codes a body with a mark for each, which they replace."""

    def __init__(self) -> None:
        # Nobody else knows it, so no text can hold a mark.
        self._token = secrets.token_hex(16)
        self._mark = re.compile(rf'"{self._token}-(\d+)"'.encode())
        self._contents: list[list[bytes]] = []

    def code(self, messages: Sequence[Message]) -> Steps[list[Message]]:
        """Code the contents, and return the messages with marks.

        Raises:
            Rejected: a text holds half a surrogate pair.
        """
        marked: list[Message] = []
        for message in messages:
            marked.append({"role": message["role"], "content": f"{self._token}-{len(self._contents)}"})
            self._contents.append((yield from _coded(message["content"])))
        return marked

    def put_into(self, body: bytes) -> list[bytes]:
        """Return the body with the contents, in pieces."""
        pieces: list[bytes] = []
        for place, part in enumerate(self._mark.split(body)):
            # Between the parts are the numbers of the marks.
            pieces += self._contents[int(part)] if place % 2 else [part]
        return pieces


def _coded(text: str) -> Steps[list[bytes]]:
    pieces = [b'"']
    for start in range(0, len(text), _PIECE):
        quoted = json.dumps(text[start : start + _PIECE], ensure_ascii=False)
        try:
            pieces.append(quoted[1:-1].encode())
        except UnicodeEncodeError as error:
            raise Rejected("the messages cannot be encoded as text") from error
        yield
    pieces.append(b'"')
    return pieces


def utf8_bytes(messages: Sequence[Message]) -> Steps[int]:
    """Return the bytes of all contents."""
    size = 0
    for message in messages:
        text = message["content"]
        for start in range(0, len(text), _PIECE):
            size += len(text[start : start + _PIECE].encode("utf-8", "replace"))
            yield
    return size
