"""Long values of events, whole, in files named by their SHA-256."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from ...sandbox_image.text import KEEP_SURROGATES
from ..errors import LogFormatError
from ..private_files import PrivateFolder, read_file, resolved
from .events import Cut

FOLDER = "blobs"

# A reader allocates no more for one value, whatever a log says of its size.
MAX_BLOB_BYTES = 256 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class LogBudget:
    """The bytes that a run may still write; None is no limit. Threads share it."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._used = 0
        self._is_used_up = False
        self._lock = Lock()

    @property
    def is_used_up(self) -> bool:
        """Whether something did not fit."""
        return self._is_used_up

    def count(self, size: int) -> None:
        """Count bytes that are written in any case."""
        with self._lock:
            self._used += size
            self._is_used_up |= self.limit is not None and self._used > self.limit

    def take(self, size: int) -> bool:
        """Count bytes if they fit. After the first that do not, none do."""
        with self._lock:
            if self._is_used_up or (self.limit is not None and self._used + size > self.limit):
                self._is_used_up = True
                return False
            self._used += size
            return True


class Digest(NamedTuple):
    """Size and hash of a value's bytes."""

    bytes: int
    sha256: str


def digest(slices: Iterable[bytes]) -> Digest:
    """Return size and hash of slices together."""
    found, size = hashlib.sha256(), 0
    for each in slices:
        found.update(each)
        size += len(each)
    return Digest(size, found.hexdigest())


def store(folder: PrivateFolder, name: str, size: int, slices: Iterable[bytes]) -> None:
    """Write a blob, complete or not at all."""
    with folder.below(FOLDER, create=True) as blobs:
        if blobs.is_own_file(name, size):
            return
        with blobs.replacing(name) as file:
            for each in slices:
                file.write(each)


def is_stored(folder: PrivateFolder, name: str, size: int) -> bool:
    """Return whether a blob is there."""
    if not folder.exists(FOLDER):
        return False
    with folder.below(FOLDER) as blobs:
        return blobs.is_own_file(name, size)


def read_blob(folder: Path, cut: Cut) -> object:
    """Return the whole value of a cut.

    Raises:
        LogFormatError: there is none, or it is not the one that was cut.
    """
    name = ".".join(map(str, cut.path))[:100]
    # The name of the file comes from the log.
    if not _SHA256.fullmatch(cut.sha256) or cut.bytes < 0:
        raise LogFormatError(f"{folder}: {name!r} was cut, and its hash or size is wrong")
    if not cut.stored:
        raise LogFormatError(
            f"{folder}: {name!r} ({cut.bytes:,} bytes) was not kept, because log_bytes was used up"
        )
    if cut.bytes > MAX_BLOB_BYTES:
        raise LogFormatError(f"{folder}: {name!r} has more than {MAX_BLOB_BYTES >> 20} MiB")
    path = resolved(folder) / FOLDER / cut.sha256
    try:
        data = read_file(path, cut.bytes)
    except OSError as error:
        raise LogFormatError(f"{path}: {name!r} cannot be read: {error.strerror or error}") from error
    if len(data) != cut.bytes or hashlib.sha256(data).hexdigest() != cut.sha256:
        raise LogFormatError(f"{path}: its content is not what the log says of {name!r}")
    try:
        text = data.decode("utf-8", KEEP_SURROGATES)
        return text if cut.kind == "text" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LogFormatError(f"{path}: {name!r} cannot be decoded: {error}") from error
