"""Share memory between processes where shared anonymous memory is refused.

Without a control group nobody counts its pages once they are unmapped. A file in /dev/shm has the same use,
and its size is bounded.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

_FOLDER = "/dev/shm"


def replace_mmap() -> None:
    """Let ``mmap.mmap(-1, size)`` work in code that runs from now on, if it does not."""
    try:
        mmap.mmap(-1, 1).close()
    except PermissionError:
        # For code that uses the module.
        setattr(mmap, "mmap", _Mmap)  # noqa: B010 - type checkers take a class for fixed


class _Mmap(mmap.mmap):
    def __new__(
        cls, fileno: int, length: int, flags: int = mmap.MAP_SHARED, *arguments: Any, **options: Any
    ) -> _Mmap:
        try:
            return super().__new__(cls, fileno, length, flags, *arguments, **options)
        except PermissionError:
            if fileno != -1 or not flags & mmap.MAP_SHARED:
                raise
        fd = os.open(_FOLDER, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            # All of it now: a page that does not fit later would be a SIGBUS.
            os.posix_fallocate(fd, 0, length)
            return super().__new__(cls, fd, length, flags & ~mmap.MAP_ANONYMOUS, *arguments, **options)
        finally:
            os.close(fd)


_Mmap.__name__ = _Mmap.__qualname__ = "mmap"
_Mmap.__module__ = "mmap"
