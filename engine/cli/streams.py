"""Standard streams that may be closed or full."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from ..write_failures import remedy_for
from .exit import NO_FILES, fail

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# As a shell reports a program that SIGPIPE ended.
READER_GONE = 141


class Descriptor(io.RawIOBase):
    """Writes to a descriptor. After a failure it writes to another one, and keeps the error.

    Args:
        descriptor: the number.
        instead: where the rest goes after a failure; None for nowhere.
        error: set if it cannot be written from the start.
    """

    def __init__(self, descriptor: int, instead: int | None = None, error: OSError | None = None) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._instead = instead
        self.error = error
        self.has_lost = False

    def fileno(self) -> int:
        """Return the number of the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of the data; return how many bytes."""
        while self.error is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:
                # Another program that shares the terminal may have made it non-blocking.
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = error
        self.has_lost = True
        # A reader that has gone wants no more.
        if self._instead is not None and self.error.errno != errno.EPIPE:
            with suppress(OSError):
                return os.write(self._instead, data)
        return memoryview(data).nbytes


class Streams:
    """Standard streams of a command. Create it with ``guard``."""

    def __init__(self, stdout: Descriptor | None) -> None:
        self._stdout = stdout

    @classmethod
    def guard(cls) -> Streams:
        """Make stdin, stdout and stderr usable, whatever they are.

        Text that stdout cannot take goes to stderr; text that stderr cannot take is lost.
        """
        is_closed = [stream is None for stream in (sys.stdin, sys.stdout, sys.stderr)]
        for descriptor, closed in enumerate(is_closed):
            # Else a file that is opened next gets the number, and what is printed.
            if closed and not _is_open(descriptor):
                os.open(os.devnull, os.O_RDWR)
        if is_closed[0]:
            sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - it lasts as long as the program
        raw = None
        if _is_ours(sys.stdout, 1):
            error = OSError(errno.EBADF, "it is closed") if is_closed[1] else None
            raw = Descriptor(1, None if is_closed[2] else 2, error)
            sys.stdout = _text(raw, sys.stdout, is_line_buffered=raw.isatty())
        if _is_ours(sys.stderr, 2):
            sys.stderr = _text(Descriptor(2), sys.stderr, is_line_buffered=True)
        return cls(raw)

    def check(self) -> None:
        """Exit if something could not be printed on stdout."""
        sys.stdout.flush()
        if self._stdout is None or not self._stdout.has_lost or self._stdout.error is None:
            return
        error = self._stdout.error
        if error.errno == errno.EPIPE:
            sys.exit(READER_GONE)
        what = f"cannot write to stdout: {error.strerror}; what was left of the output went to stderr"
        fail(NO_FILES, f"{what}; {remedy_for(error, 'send stdout elsewhere')}")


def _is_open(descriptor: int) -> bool:
    with suppress(OSError):
        os.fstat(descriptor)
        return True
    return False


def _is_ours(stream: object, descriptor: int) -> bool:
    # A test may have put its own stream there.
    return stream is None or (type(stream) is io.TextIOWrapper and stream.fileno() == descriptor)


def _text(raw: Descriptor, before: io.TextIOBase | TextIO | None, *, is_line_buffered: bool) -> TextIO:
    encoding = before.encoding if before is not None else "utf-8"
    # A terminal without UTF-8 must not end a command at a letter that it cannot print.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=is_line_buffered
    )
