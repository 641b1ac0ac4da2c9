"""A context on its way into sandboxes: written once into sealed memory, handed on as a descriptor."""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias

from ...sandbox_image.text import KEEP_SURROGATES
from ..errors import TaskError

Kind: TypeAlias = Literal["text", "object"]
"""The protocol's: UTF-8 text, or a pickle of plain data.

A pickle, since it keeps what JSON does not: key types, tuples, lone surrogates. The host writes it and
only guests read it; no pickle travels the other way.
"""

_PIECE_CHARS = 1 << 20


class Sink(Protocol):
    """Where an encoded context goes: a file in binary mode, or what is like one. It takes all that it is given."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take the next piece; it may be changed afterwards."""
        ...


def encode_context(context: object, sink: Sink) -> Kind:
    """Write a str, list, dict or other plain data into ``sink``, a piece at a time, and say how it is written.

    In pieces, since memory for all of it would be fresh from the kernel, which takes longer than to encode it.

    Raises:
        TaskError: there is something in it that is no plain data (an object of a class, a function). The sink may
            have got the part before it.
        OSError: the sink's.
    """
    if isinstance(context, EncodedContext):
        with context.opened() as data:
            sink.write(data)
        return context.kind
    if type(context) is str:
        for start in range(0, len(context), _PIECE_CHARS):
            sink.write(context[start : start + _PIECE_CHARS].encode("utf-8", KEEP_SURROGATES))
        return "text"
    try:
        _PlainPickler(sink, protocol=5).dump(context)
    except RecursionError:
        raise TaskError("the context is nested too deeply; at most about 300 levels") from None
    return "object"


class _PlainPickler(pickle.Pickler):
    def reducer_override(self, obj: Any, /) -> Any:
        # Called for everything that pickle does not know by heart: classes, functions, instances.
        raise TaskError(
            f"the context holds an object of type {type(obj).__qualname__}; "
            "it may hold str, int, float, bool, None, bytes and lists, tuples, sets and dicts of them"
        )


class EncodedContext:
    """A context, encoded once into sealed memory. Sandboxes, the run log and its hash read the same bytes.

    Pass it to ``open_sandbox`` in the place of the context, and close it after the sandbox.

    Attributes:
        value: the context itself.
        kind: how it is encoded.
        size: bytes of the encoded form.

    Raises:
        TaskError, OSError: as ``encode_context`` does.
    """

    def __init__(self, value: object) -> None:
        self.value = value
        self._fd = new_memory()
        try:
            self.kind: Kind = write_sealed(self._fd, value)
            self.size = os.fstat(self._fd).st_size
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> EncodedContext:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def descriptor(self) -> int:
        """Return a new descriptor of the memory. The caller closes it."""
        return os.dup(self._fd)

    @contextmanager
    def opened(self) -> Generator[memoryview]:
        """Yield the encoded bytes. They are mapped, not copied."""
        if not self.size:
            yield memoryview(b"")
            return
        with mmap.mmap(self._fd, self.size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as data:
            yield data

    def close(self) -> None:
        """Give the memory back; sandboxes that have it keep it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ContextMemory:
    """Encodes contexts into sealed memory. A text that is asked for again is not written again.

    In two steps, so that whoever is to read it can be on its way while it is written.
    """

    def __init__(self) -> None:
        self._text: str | None = None
        self._fd = -1

    def descriptor(self, context: object) -> int:
        """A descriptor, which the caller closes, of memory for the context. It holds nothing before ``write``."""
        if isinstance(context, EncodedContext):
            return context.descriptor()
        is_held = self._text is not None and context is self._text
        return os.dup(self._fd) if is_held else new_memory()

    def write(self, fd: int, context: object) -> Kind:
        """Write the context into the memory that ``descriptor`` has just given for it, unless it is there; its kind.

        Raises:
            TaskError, OSError: as ``encode_context`` does.
        """
        if isinstance(context, EncodedContext):
            return context.kind
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
            return "text"
        kind = write_sealed(fd, context)
        # Only a text is kept: it cannot change, so that being the same object is being equal.
        if isinstance(context, str):
            self.close()
            self._text, self._fd = context, os.dup(fd)
        return kind

    def close(self) -> None:
        """Give the memory back; sandboxes that have it keep it."""
        if self._text is not None:
            os.close(self._fd)
            self._text = None


def new_memory() -> int:
    """A memory file that can be sealed; nothing is in it."""
    return os.memfd_create("context", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def write_sealed(fd: int, context: object) -> Kind:
    """Write the encoded context into new memory, so that nobody can change it any more; its kind.

    Raises:
        TaskError, OSError: as ``encode_context`` does.
    """
    with open(fd, "wb", closefd=False) as file:
        kind = encode_context(context, file)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return kind
