"""Files that only their owner can read, in folders that somebody else may have prepared.

Files are made with mode 0600 and folders with 0700. They are opened below the descriptor of their folder, and no link is
followed, so that a link planted under the name of a log leads nowhere. A file that is written to must be the caller's own.
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


MOST_BYTES = 4 << 30
"""Of a file that is read whole: larger than any context that a sandbox takes, and not endless."""


class ResolvedPath(PosixPath):
    """An absolute path without links. It is opened without following any: what became a link since is refused."""


def resolved(path: str | os.PathLike[str]) -> ResolvedPath:
    """Resolve the links of a path; what does not exist stays as it is.

    Raises:
        OSError: the links go in a circle, or a name is too long.
    """
    if isinstance(path, ResolvedPath):
        return path
    try:
        return ResolvedPath(os.path.realpath(path))
    except ValueError as error:  # a null character
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error


class PrivateFolder:
    """An open folder. Use it as a context manager, or close it.

    Raises:
        OSError: by every method; ``strerror`` says why for a person.
    """

    def __init__(self, path: ResolvedPath, descriptor: int) -> None:
        """Take an open descriptor. See ``open``."""
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = False) -> PrivateFolder:
        """Open a folder, and make it with its parents if ``create`` is true. Links in ``path`` are resolved first,
        unless it is a ``ResolvedPath``.
        """
        place = resolved(path)
        if ".." in place.parts:
            raise OSError(errno.EINVAL, "a resolved path has no '..'", str(place))
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
        """Close the folder; files that were opened in it stay open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def below(self, name: str, *, create: bool = False) -> PrivateFolder:
        """Open a folder in this one."""
        place = self._path_of(name)
        return PrivateFolder(place, _open_folder(self._descriptor, name, place, create=create))

    def exists(self, name: str) -> bool:
        """Return whether the folder has an entry of that name, be it a link that leads nowhere."""
        return self._mode(name) is not None

    def is_own_file(self, name: str) -> bool:
        """Return whether there is a regular file of that name which belongs to the caller."""
        try:
            found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()

    def read(self, name: str) -> BinaryIO:
        """Open a regular file for reading."""
        return open(self._open(name, os.O_RDONLY), "rb")

    def append(self, name: str) -> BinaryIO:
        """Open a file for appending and reading, and make it if there is none."""
        return open(self._open_own(name, os.O_RDWR | os.O_APPEND), "ab+")

    def update(self, name: str) -> int:
        """Open a file for reading and writing, and make it if there is none; the descriptor."""
        return self._open_own(name, os.O_RDWR)

    def check_own(self, name: str) -> None:
        """See that a file, if it is there, could be written by this class: a regular one of the caller's, with one name."""
        try:
            found = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return
        path = self._path_of(name)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        _check_own(found, path)

    @contextmanager
    def replacing(self, name: str, *, mode: int = 0o600) -> Generator[BinaryIO]:
        """Yield a new file, which takes the name when the block has ended well and is gone when it has not."""
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

    def move(self, name: str, folder: PrivateFolder, new_name: str) -> None:
        """Move an entry, as it is, into another folder of the same file system."""
        os.rename(name, new_name, src_dir_fd=self._descriptor, dst_dir_fd=folder._descriptor)

    def folders(self) -> list[str]:
        """List the names of the folders in this one; links are none."""
        return [name for name in self.names() if stat.S_ISDIR(self._mode(name) or 0)]

    def names(self) -> list[str]:
        """List the names of all entries."""
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
            raise _named(error, path) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return descriptor

    def _open_own(self, name: str, flags: int) -> int:
        descriptor = self._open(name, flags | os.O_CREAT)
        try:
            _make_own(descriptor, self.path / name)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _make_own(descriptor: int, path: Path) -> None:
    """See that an open file is the caller's alone, and that nobody else can read it from now."""
    found = os.fstat(descriptor)
    _check_own(found, path)
    if found.st_mode & 0o077:
        os.fchmod(descriptor, 0o600)


def _check_own(found: os.stat_result, path: Path) -> None:
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to another user (uid {found.st_uid})", str(path))
    if found.st_nlink != 1:
        raise OSError(errno.EMLINK, "it has a second name (a hard link)", str(path))


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading. It may be no link, and of a ``ResolvedPath`` no part may be one.

    Raises:
        OSError: it cannot be opened.
    """
    place = path if isinstance(path, Path) else Path(path)
    with PrivateFolder.open(place.parent) as folder:
        return folder.read(place.name)


def digest_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a regular file that is no link, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_there(path: Path) -> bool:
    """Return whether there is something at a path, be it a link that leads nowhere."""
    return os.path.lexists(path)


def read_file(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """Read a file whole. Of a ``ResolvedPath`` no part may be a link, and it must be a regular file.

    Raises:
        OSError: it cannot be read, or has more than ``most`` bytes.
    """
    with open_file(path) if isinstance(path, ResolvedPath) else open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size <= most and len(data := file.read(most + 1)) <= most:
            return data
    raise OSError(errno.EFBIG, f"it is larger than {most >> 20:,} MiB", os.fspath(path))


def others_may_write(found: os.stat_result) -> bool:
    """Return whether a user other than the owner may write: by the mode for all, or for a group that is not the caller's
    own.
    """
    by_group = found.st_mode & stat.S_IWGRP and found.st_gid != os.getegid()
    return bool(found.st_mode & stat.S_IWOTH or by_group)


def _open_folder(above: int, name: str, path: Path, *, create: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=above)
    except FileNotFoundError as error:
        if not create:
            raise _named(error, path) from error
    except OSError as error:
        raise _named(error, path) from error
    try:
        with suppress(FileExistsError):  # another process may have made it
            os.mkdir(name, 0o700, dir_fd=above)
        return os.open(name, _FOLDER, dir_fd=above)
    except OSError as error:
        raise _named(error, path) from error


def _named(error: OSError, path: Path) -> OSError:
    """The same error with the whole path, and words for a link."""
    is_link = error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink()
    why = "it is a link, and links are not followed here" if is_link else error.strerror
    return OSError(error.errno, why, str(path))


@contextmanager
def _opened(descriptor: int) -> Generator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
