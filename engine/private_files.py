"""Open files that only their owner can read, in folders that other users may have prepared.

Every function may raise ``OSError``; ``strerror`` gives the reason.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path, PosixPath
from types import TracebackType
from typing import BinaryIO

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO would wait for its other end.
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# For a file that is read whole: larger than any context of a sandbox, and not endless.
MOST_BYTES = 4 << 30
# A logged cell with all that the default limits of output and display allow, each byte as a \u escape.
MAX_LINE_BYTES = 256 << 20


class ResolvedPath(PosixPath):
    """An absolute path without links, to open without following any."""


def resolved(path: str | os.PathLike[str]) -> ResolvedPath:
    """Resolve the links of a path."""
    if isinstance(path, ResolvedPath):
        return path
    try:
        return ResolvedPath(os.path.realpath(path))
    # Python's own, for a null character.
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error


# Everything is opened below the descriptor of its folder: a link that somebody planted leads nowhere.
class PrivateFolder:
    """An open folder. New files get mode 0600, new folders 0700."""

    def __init__(self, path: ResolvedPath, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = False) -> PrivateFolder:
        """Open a folder, or make it with its parents. Links in ``path`` are resolved."""
        place = resolved(path)
        if ".." in place.parts:
            raise OSError(errno.EINVAL, "a resolved path has no '..'", str(place))
        # Part by part: O_NOFOLLOW looks only at the last part of a path.
        descriptor = os.open("/", _FOLDER)
        try:
            for number, part in enumerate(place.parts[1:], 2):
                here = ResolvedPath(*place.parts[:number])
                below = _open_folder(descriptor, part, here, create=create)
                os.close(descriptor)
                descriptor = below
        except BaseException:
            os.close(descriptor)
            raise
        return cls(place, descriptor)

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder; its open files stay open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def below(self, name: str, *, create: bool = False) -> PrivateFolder:
        """Open a folder in this one."""
        place = self._path_of(name)
        return PrivateFolder(place, _open_folder(self._descriptor, name, place, create=create))

    def make(self, name: str) -> PrivateFolder:
        """Make a folder in this one, and open it; raise ``FileExistsError`` if there is such an entry."""
        place = self._path_of(name)
        try:
            os.mkdir(name, 0o700, dir_fd=self._descriptor)
        except OSError as error:
            raise _with_path(error, place) from error
        return self.below(name)

    @property
    def is_own(self) -> bool:
        """Whether it is the caller's."""
        return os.fstat(self._descriptor).st_uid == os.geteuid()

    def exists(self, name: str) -> bool:
        """Return whether there is such an entry."""
        return self._mode(name) is not None

    def is_own_file(self, name: str, size: int | None = None) -> bool:
        """Return whether it is a regular file of the caller's, with ``size`` bytes if given."""
        try:
            found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        return is_own and size in (None, found.st_size)

    def read(self, name: str) -> BinaryIO:
        """Open a regular file for reading."""
        return open(self._open(name, os.O_RDONLY), "rb")

    def append(self, name: str) -> BinaryIO:
        """Open or make a file to append and read."""
        return open(self._open_own(name, os.O_RDWR | os.O_APPEND), "ab+")

    def update(self, name: str) -> int:
        """Open or make a file to read and write."""
        return self._open_own(name, os.O_RDWR)

    def check_own(self, name: str) -> None:
        """Check that ``append`` could open a file."""
        try:
            found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return
        # What append and update demand: a regular file of the caller's with one name.
        path = self._path_of(name)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        _check_own(found, path)

    @contextmanager
    def replacing(self, name: str, *, mode: int = 0o600) -> Generator[BinaryIO]:
        """Yield a new file, which takes the name if the block ends well."""
        # A name has at most 255 bytes.
        part = f".{name[:200]}.{secrets.token_hex(8)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE
        descriptor = os.open(part, flags, mode, dir_fd=self._descriptor)
        try:
            with open(descriptor, "wb") as file:
                yield file
            os.replace(part, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            with suppress(OSError):
                self.remove(part)
            raise

    def remove(self, name: str) -> None:
        """Remove a file or a link."""
        os.unlink(name, dir_fd=self._descriptor)

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder."""
        os.rmdir(name, dir_fd=self._descriptor)

    def link(self, name: str, folder: PrivateFolder) -> None:
        """Give a file the same name in another folder, too."""
        os.link(name, name, src_dir_fd=self._descriptor, dst_dir_fd=folder._descriptor, follow_symlinks=False)

    def names_of(self, name: str) -> int:
        """Return how many names a file has: its hard links."""
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_nlink

    def move(self, name: str, folder: PrivateFolder, new_name: str) -> None:
        """Move an entry into another folder."""
        os.rename(name, new_name, src_dir_fd=self._descriptor, dst_dir_fd=folder._descriptor)

    def folders(self) -> list[str]:
        """List the folders in this one."""
        return [name for name in self.names() if stat.S_ISDIR(self._mode(name) or 0)]

    def names(self) -> list[str]:
        """List all entries."""
        with _opened(
            os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._descriptor)
        ) as fd:
            return sorted(os.listdir(fd))

    def _path_of(self, name: str) -> ResolvedPath:
        if "/" in name or name in ("", ".", ".."):
            raise OSError(errno.EINVAL, "it is no name of a file", name)
        return ResolvedPath(self.path, name)

    def _mode(self, name: str) -> int | None:
        try:
            return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return None

    def _open(self, name: str, flags: int) -> int:
        path = self._path_of(name)
        try:
            descriptor = os.open(name, flags | _FILE, 0o600, dir_fd=self._descriptor)
        except OSError as error:
            raise _with_path(error, path) from error
        # Checked on the open descriptor: a path could be replaced after the check.
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return descriptor

    def _open_own(self, name: str, flags: int) -> int:
        descriptor = self._open(name, flags | os.O_CREAT)
        try:
            _make_private(descriptor, self.path / name)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _make_private(descriptor: int, path: Path) -> None:
    found = os.fstat(descriptor)
    _check_own(found, path)
    # From now only the owner can open it.
    if found.st_mode & 0o077:
        os.fchmod(descriptor, 0o600)


def _check_own(found: os.stat_result, path: Path) -> None:
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to another user (uid {found.st_uid})", str(path))
    # Another user may have linked a file of the caller's here.
    if found.st_nlink != 1:
        raise OSError(errno.EMLINK, "it has another hard link; copy it to a new file", str(path))


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; no link is followed."""
    place = path if isinstance(path, Path) else Path(path)
    with PrivateFolder.open(place.parent) as folder:
        return folder.read(place.name)


def digest_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a regular file in hexadecimal."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_there(path: Path) -> bool:
    """Return whether something is at a path."""
    # A broken link counts.
    return os.path.lexists(path)


def read_file(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """Read a whole file of at most ``most`` bytes."""
    # A path of the user's may have links and be a pipe; a ResolvedPath is a regular file without any.
    with open_file(path) if isinstance(path, ResolvedPath) else open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size <= most and len(data := file.read(most + 1)) <= most:
            return data
    raise OSError(errno.EFBIG, f"it is larger than {most >> 20:,} MiB", os.fspath(path))


def read_line(file: BinaryIO, most: int = MAX_LINE_BYTES) -> bytes:
    """Read a line of at most ``most`` bytes; empty at the end of the file."""
    line = file.readline(most + 1)
    if len(line) > most:
        raise OSError(errno.EFBIG, f"a line is longer than {most >> 20:,} MiB")
    return line


def others_may_write(found: os.stat_result) -> bool:
    """Return whether others may write the file."""
    # The caller's own group has no other members on most systems.
    by_group = found.st_mode & stat.S_IWGRP and found.st_gid != os.getegid()
    return bool(found.st_mode & stat.S_IWOTH or by_group)


def _open_folder(above: int, name: str, path: Path, *, create: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=above)
    except FileNotFoundError as error:
        if not create:
            raise _with_path(error, path) from error
    except OSError as error:
        raise _with_path(error, path) from error
    try:
        # Another process may have made it.
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=above)
        return os.open(name, _FOLDER, dir_fd=above)
    except OSError as error:
        raise _with_path(error, path) from error


def _with_path(error: OSError, path: Path) -> OSError:
    # The kernel's words for a refused link (ELOOP, ENOTDIR) mislead.
    is_link = error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink()
    why = "it is a link, and links are not followed here" if is_link else error.strerror
    return OSError(error.errno, why, str(path))


@contextmanager
def _opened(descriptor: int) -> Generator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
