"""Find files by path, folder or pattern, and read their bytes."""

from __future__ import annotations

import asyncio
import errno
import glob
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from anyio import to_thread

from ..errors import TaskError
from ..private_files import ResolvedPath, read_file

# One file, and all files of a context.
MOST_BYTES = 1 << 30
MOST_FILES = 10_000
# A pipe may be silent for so long.
_SILENT_SECONDS = 600.0
_SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules"})
_PIECE = 1 << 20


class Found(NamedTuple):
    """A file, and its name in the context."""

    name: str
    path: Path


def is_pattern(text: str, folder: Path) -> bool:
    """Return whether a text is a pattern for files, and no name of one."""
    return glob.has_magic(text) and not os.path.lexists(folder / text)


def matching(pattern: str, folder: Path) -> list[Found]:
    """Return the files that a pattern finds from a folder, sorted; hidden ones only if it names them.

    Raises:
        TaskError: there is none, or there are too many.
    """
    root = None if os.path.isabs(pattern) else folder
    found: list[Found] = []
    for name in glob.iglob(pattern, root_dir=root, recursive=True):
        path = folder / name
        if os.path.isfile(path):
            found.append(Found(name, path))
            _check_number(found, pattern)
    if not found:
        closed = closed_folder(folder / pattern)
        if closed is not None:
            raise TaskError(f"cannot read the folder {closed}: {os.strerror(errno.EACCES)}")
        raise TaskError(f"no file matches {pattern!r}")
    # A pattern with ** may find a file twice.
    return sorted(set(found))


def closed_folder(pattern: Path) -> Path | None:
    """Return the folder before a pattern's first wildcard if it may not be read."""
    parts = pattern.parts
    first = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    folder = Path(*parts[:first])
    try:
        os.scandir(folder).close()
    except PermissionError:
        return folder
    except OSError:
        return None
    return None


def below(folder: Path, shown: str, warn: Callable[[str], None]) -> list[Found]:
    """Return the files of a folder and its folders, sorted. Hidden files and links are skipped.

    Raises:
        TaskError: it has too many, or none, or may not be read.
    """
    found: list[Found] = []
    skipped: list[str] = []

    def skip(error: OSError) -> None:
        if os.path.samefile(error.filename, folder):
            raise TaskError(f"cannot read the folder {shown}: {error.strerror}") from error
        skipped.append(os.path.relpath(error.filename, folder))

    for base, folders, names in os.walk(folder, onerror=skip):
        here = Path(base)
        hidden = [each for each in folders if each.startswith(".") or each in _SKIPPED_FOLDERS]
        folders[:] = sorted(set(folders) - set(hidden))
        skipped += [str((here / each).relative_to(folder)) for each in hidden]
        # ``os.walk`` does not enter links to folders.
        skipped += [str((here / each).relative_to(folder)) for each in folders if (here / each).is_symlink()]
        for name in sorted(names):
            path = here / name
            relative = str(path.relative_to(folder))
            if name.startswith(".") or not _is_plain(path):
                skipped.append(relative)
                continue
            found.append(Found(relative, path))
            _check_number(found, shown)
    if skipped:
        more = f" and {len(skipped) - 5:,} more" if len(skipped) > 5 else ""
        why = "hidden, a link, a device, a cache or unreadable"
        warn(f"{shown}: skipped ({why}): {', '.join(skipped[:5])}{more}")
    if not found:
        raise TaskError(f"the folder {shown} has no file to read")
    return sorted(found)


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _check_number(found: list[Found], shown: str) -> None:
    if len(found) > MOST_FILES:
        raise TaskError(f"{shown} has more than {MOST_FILES:,} files; name fewer")


async def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a file of at most ``most`` bytes. A path that was permitted must be a regular file.

    Raises:
        OSError: it cannot be read; ``strerror`` says why.
    """
    descriptor = None if isinstance(path, ResolvedPath) else _open_stream(path)
    if descriptor is None:
        # A thread is safe here: a file has an end, and reading it releases the interpreter's lock.
        return await to_thread.run_sync(read_file, path, most)
    try:
        return await _read_stream(descriptor, path, most)
    finally:
        os.close(descriptor)


def _open_stream(path: Path) -> int | None:
    """Open a pipe or a terminal; None for a file."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or path.samefile(os.devnull):
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # O_NONBLOCK: opening a FIFO would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISFIFO(mode) or os.isatty(descriptor):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is a device, and may have no end", str(path))


async def _read_stream(descriptor: int, path: Path, most: int) -> bytes:
    # Not in a thread: one that waits for a pipe cannot be stopped.
    loop, pieces, size = asyncio.get_running_loop(), list[bytes](), 0
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        while True:
            try:
                await asyncio.wait_for(ready.wait(), _SILENT_SECONDS)
            except TimeoutError:
                raise OSError(
                    errno.ETIMEDOUT, f"nothing came for {_SILENT_SECONDS:.0f} s", str(path)
                ) from None
            ready.clear()
            try:
                piece = os.read(descriptor, _PIECE)
            except BlockingIOError:
                continue
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise OSError(errno.EFBIG, f"it has more than {most >> 20:,} MiB", str(path))
    finally:
        loop.remove_reader(descriptor)
