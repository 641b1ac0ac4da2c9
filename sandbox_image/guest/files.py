"""Read, write and list files in the working directory, for the host."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from .. import protocol
from ..protocol import FileCode, FileData, FileEntry, FileList, GetFile, ListFiles, PutFile
from ..text import replace_surrogates

# Links are not followed. The open descriptor is checked and then used, so that guest code cannot swap the
# file. No O_DIRECTORY: gVisor follows links where it is given, O_NOFOLLOW or not.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# A bound on the entries of one list: init serves nothing else meanwhile.
_MAX_ENTRIES = protocol.LISTING_FILES


class _RefusedError(Exception):
    def __init__(self, code: FileCode) -> None:
        self.code: FileCode = code


def serve(request: protocol.ToGuest) -> FileData | FileList:
    """Serve a request; the answer may hold an error."""
    if isinstance(request, ListFiles):
        return _list(request)
    assert isinstance(request, (PutFile, GetFile))
    try:
        if isinstance(request, PutFile):
            _put(request)
            return FileData(request.request, b"", None)
        return FileData(request.request, _get(request), None)
    except _RefusedError as refused:
        return FileData(request.request, b"", refused.code)
    except FileNotFoundError:
        return FileData(request.request, b"", "not_found")
    except (OSError, ValueError):
        return FileData(request.request, b"", "io")


def _list(request: ListFiles) -> FileList:
    files: list[FileEntry] = []
    unread: list[str] = []
    room = protocol.LISTING_CHARS
    for looked_at, entry in enumerate(_entries(unread)):
        # Those after it were not looked at.
        if looked_at == _MAX_ENTRIES:
            return FileList(request.request, files, more=True)
        if entry is None:
            continue
        room -= len(entry.path)
        if room < 0 or len(files) == request.most:
            return FileList(request.request, files, more=True)
        files.append(entry)
    return FileList(request.request, files, more=bool(unread))


# Breadth first; None for what is no regular file. Adds folders with too long paths to `unread`.
def _entries(unread: list[str]) -> Iterator[FileEntry | None]:
    folders = deque(["."])
    while folders:
        folder = folders.popleft()
        try:
            with os.scandir(folder) as found:
                # One more than are looked at: a folder of just so many is not cut.
                entries = sorted(islice(found, _MAX_ENTRIES + 1), key=lambda entry: entry.name)
        except OSError as error:
            # A folder that is closed or gone shows nothing; one that is too deep may hold more.
            if error.errno == errno.ENAMETOOLONG:
                unread.append(folder)
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            yield _describe(entry)


def _describe(entry: os.DirEntry[str]) -> FileEntry | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return FileEntry(replace_surrogates(entry.path.removeprefix("./")), status.st_size)


def _put(request: PutFile) -> None:
    folder, name = _folder(request.path, create=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if request.append else 0) | _FLAGS
        fd = _open(name, flags, folder)
    finally:
        os.close(folder)
    try:
        if not request.append:
            os.ftruncate(fd, 0)
        view = memoryview(request.data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def _get(request: GetFile) -> bytes:
    folder, name = _folder(request.path, create=False)
    try:
        fd = _open(name, os.O_RDONLY | _FLAGS, folder)
    finally:
        os.close(folder)
    try:
        pieces: list[bytes] = []
        offset, left = request.offset, request.size
        while left:
            piece = os.pread(fd, left, offset)
            if not piece:
                break
            pieces.append(piece)
            offset, left = offset + len(piece), left - len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def _folder(path: str, *, create: bool) -> tuple[int, str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]  # pathlib takes long to import
    if not parts or ".." in parts or path.startswith("/") or "\0" in path:
        raise _RefusedError("outside")
    fd = _open(".", os.O_RDONLY | _FLAGS, None, stat.S_ISDIR)
    try:
        for part in parts[:-1]:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=fd)
            child = _open(part, os.O_RDONLY | _FLAGS, fd, stat.S_ISDIR)
            os.close(fd)
            fd = child
    except BaseException:
        os.close(fd)
        raise
    return fd, parts[-1]


def _open(name: str, flags: int, folder: int | None, is_wanted: Callable[[int], bool] = stat.S_ISREG) -> int:
    try:
        fd = os.open(name, flags, 0o644, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        if not is_wanted(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise _RefusedError("not_regular") from error
        raise
    if not is_wanted(os.fstat(fd).st_mode):
        os.close(fd)
        raise _RefusedError("not_regular")
    return fd
