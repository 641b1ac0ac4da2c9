"""Encodes a context into sealed memory, which guests read by a descriptor."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import pickle
from collections.abc import Generator
from contextlib import contextmanager
from enum import Enum
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias

from anyio import CapacityLimiter, to_thread

from ...sandbox_image.text import KEEP_SURROGATES
from ..errors import TaskError

# UTF-8 text, or a pickle of plain data, which keeps key types, tuples and lone surrogates, unlike JSON.
# Only the host writes pickles, and only guests read them.
Kind: TypeAlias = Literal["text", "object"]

_PIECE_CHARS = 1 << 20


class NoContext(Enum):
    """The default of a ``context``: any value, also None, can be one."""

    NO_CONTEXT = "no context"


NO_CONTEXT = NoContext.NO_CONTEXT


class Sink(Protocol):
    """A binary file, or another writer."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take all of ``data``; the caller may change it afterwards."""
        ...


def encode_context(context: object, sink: Sink) -> Kind:
    """Write a str, list, dict or other plain data into ``sink``, and return its encoding.

    Raises:
        TaskError: it is no plain data; a part may be written.
        OSError: from the sink.
    """
    if isinstance(context, EncodedContext):
        with context.opened() as data:
            sink.write(data)
        return context.kind
    if type(context) is str:
        # In pieces: fresh memory for the whole text costs more than the encoding.
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
        # pickle calls this for what it has no code of its own for: classes, functions, instances.
        raise TaskError(
            f"the context holds an object of type {type(obj).__qualname__}; "
            "it may hold str, int, float, bool, None, bytes and lists, tuples, sets and dicts of them"
        )


class EncodedContext:
    """A context in sealed memory, for ``open_sandbox`` and run logs. Close it after the sandbox.

    Attributes:
        value: the context itself.
        size: bytes of the encoded form.

    Raises:
        TaskError, OSError: as ``encode_context`` does.
    """

    def __init__(self, value: object) -> None:
        # Encoded once: sandboxes, the run log and its hash read the same bytes.
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
        """Return a new descriptor of the memory; the caller closes it."""
        return os.dup(self._fd)

    @contextmanager
    def opened(self) -> Generator[memoryview]:
        """Yield the encoded bytes."""
        # An empty file cannot be mapped.
        if not self.size:
            yield memoryview(b"")
            return
        # Mapped, not copied.
        with mmap.mmap(self._fd, self.size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as data:
            yield data

    def close(self) -> None:
        """Close the memory; sandboxes keep theirs."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


async def encode_beside_loop(context: object) -> EncodedContext:
    """Encode a context while the event loop goes on. Raises as ``EncodedContext``."""
    if not _is_long(context):
        return EncodedContext(context)
    made: list[EncodedContext] = []
    try:
        await to_thread.run_sync(lambda: made.append(EncodedContext(context)), limiter=CapacityLimiter(1))
    except BaseException:
        # The caller was cancelled while the thread worked.
        for each in made:
            each.close()
        raise
    return made[0]


def _is_long(context: object) -> bool:
    # A thread helps here: after each piece it writes, which releases the interpreter's lock.
    if isinstance(context, EncodedContext):
        return False
    return not isinstance(context, str) or len(context) > _PIECE_CHARS


class ContextMemory:
    """Encodes contexts into sealed memory; the same text only once."""

    def __init__(self) -> None:
        self._writing = asyncio.Lock()
        self._text: str | None = None
        self._fd = -1

    async def written(self, context: object) -> tuple[int, Kind]:
        """Return a descriptor of memory with the context, which the caller closes, and its encoding.

        Raises:
            TaskError, OSError: as ``encode_context`` does.
        """
        # One after another: the second of two that open with the same text finds it written.
        async with self._writing:
            fd = self.descriptor(context)
            try:
                if _is_long(context) and context is not self._text:
                    return fd, await to_thread.run_sync(self.write, fd, context, limiter=CapacityLimiter(1))
                return fd, self.write(fd, context)
            except BaseException:
                os.close(fd)
                raise

    def descriptor(self, context: object) -> int:
        """Return a descriptor of memory that ``write`` fills; the caller closes it."""
        if isinstance(context, EncodedContext):
            return context.descriptor()
        is_held = self._text is not None and context is self._text
        return os.dup(self._fd) if is_held else new_memory()

    def write(self, fd: int, context: object) -> Kind:
        """Write the context, if it is not there yet, and return its encoding.

        Raises:
            TaskError, OSError: as ``encode_context`` does.
        """
        if isinstance(context, EncodedContext):
            return context.kind
        # Sealed memory is that of a text that was written before.
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
            return "text"
        kind = write_sealed(fd, context)
        # Only a text is kept: it cannot change, so the same object has the same content.
        if isinstance(context, str):
            self.close()
            self._text, self._fd = context, os.dup(fd)
        return kind

    def close(self) -> None:
        """Close the memory; sandboxes keep theirs."""
        if self._text is not None:
            os.close(self._fd)
            self._text = None


def new_memory() -> int:
    """Return a descriptor of empty memory that can be sealed."""
    return os.memfd_create("context", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def write_sealed(fd: int, context: object) -> Kind:
    """Write the context into new memory, seal it, and return its encoding. Raises as ``encode_context``."""
    with open(fd, "wb", closefd=False) as file:
        kind = encode_context(context, file)
    # Guests share the memory, so none may change it.
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return kind
