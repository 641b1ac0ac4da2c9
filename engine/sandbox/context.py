"""A context on its way into sandboxes: written once into sealed memory, handed on as a descriptor."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import pickle
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import TaskError


@dataclass(frozen=True, slots=True)
class EncodedContext:
    """A context as bytes. ``kind`` is the protocol's: UTF-8 text, or a pickle of plain data.

    A pickle, since it keeps what JSON does not: key types, tuples, lone surrogates. The host writes it and
    only guests read it; no pickle travels the other way.
    """

    kind: Literal["text", "object"]
    data: bytes

    @property
    def sha256(self) -> str:
        """The hash of the bytes, in hex."""
        return hashlib.sha256(self.data).hexdigest()


def encode_context(context: object) -> EncodedContext:
    """Encode a str, list, dict or other plain data.

    Raises:
        TaskError: there is something in it that is no plain data (an object of a class, a function).
    """
    if type(context) is str:
        return EncodedContext("text", context.encode("utf-8", "surrogatepass"))
    buffer = io.BytesIO()
    try:
        _PlainPickler(buffer, protocol=5).dump(context)
    except RecursionError:
        raise TaskError("the context is nested too deeply; at most about 300 levels") from None
    return EncodedContext("object", buffer.getvalue())


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, obj: Any, /) -> Any:
        # Called for everything that pickle does not know by heart: classes, functions, instances.
        raise TaskError(
            f"the context holds an object of type {type(obj).__qualname__}; "
            "it may hold str, int, float, bool, None, bytes and lists, tuples, sets and dicts of them"
        )


class ContextMemory:
    """Encodes contexts into sealed memory. A text that is asked for again is not written again."""

    def __init__(self) -> None:
        self._text: str | None = None
        self._fd = -1

    def descriptor(self, context: object) -> tuple[int, Literal["text", "object"]]:
        """A descriptor of the encoded context, which the caller closes, and its kind."""
        if self._text is None or context is not self._text:
            encoded = encode_context(context)
            fd = write_sealed(encoded.data)
            # Only a text is kept: it cannot change, so that being the same object is being equal.
            if not isinstance(context, str):
                return fd, encoded.kind
            self.close()
            self._text, self._fd = context, fd
        return os.dup(self._fd), "text"

    def close(self) -> None:
        """Give the memory back; sandboxes that have it keep it."""
        if self._text is not None:
            os.close(self._fd)
            self._text = None


def write_sealed(data: bytes) -> int:
    """A memory file that holds ``data`` and that nobody can change any more."""
    fd = os.memfd_create("context", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd
