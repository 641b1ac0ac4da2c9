"""Contexts on their way into containers: files that are mounted, in a folder with its engine's lease."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from .context import Kind, encode_context
from .owner import has_ended, own_lease

_FOLDER = "supdist-contexts-"
_LEASE = "lease"
_MEMORY = "/dev/shm"
_ENOUGH_BYTES = 1 << 30


class ContextFiles:
    """Encodes contexts into files of a folder. A text that is asked for again is not written again.

    Args:
        folder: on one file system with the places where the files are wanted.
    """

    def __init__(self, folder: str) -> None:
        self._kept = os.path.join(folder, "kept")
        self._text: str | None = None

    def put(self, context: object, file: str) -> Kind:
        """Have a file with the encoded context, that everybody may read; its kind.

        Raises:
            TaskError, OSError: as ``encode_context`` does. The file may hold a part of it.
        """
        if self._text is not None and context is self._text:
            os.link(self._kept, file)
            return "text"
        with open(file, "xb") as stream:
            kind = encode_context(context, stream)
        os.chmod(file, 0o444)
        if isinstance(context, str):  # which cannot change: see ContextMemory
            self._text = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._kept)
            os.link(file, self._kept)
            self._text = context
        return kind


def make_folder() -> str:
    """A folder for contexts, with this process's lease; those of dead processes are removed.

    A guest can read the part of its path that lies below its file system's root, so that a memory file system tells
    nothing of the host.
    """
    for other in (path for place in _places() for path in Path(place).glob(f"{_FOLDER}*")):
        if _is_left_over(other):
            shutil.rmtree(other, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_FOLDER, dir=_places()[0])
    Path(folder, _LEASE).write_text(own_lease())
    return folder


def _places() -> list[str]:
    """Where such folders can be, the best first."""
    places = [tempfile.gettempdir()]
    if os.access(_MEMORY, os.W_OK) and os.path.ismount(_MEMORY):
        room = os.statvfs(_MEMORY)
        places.insert(0 if room.f_bavail * room.f_frsize >= _ENOUGH_BYTES else 1, _MEMORY)
    return places


def _is_left_over(folder: Path) -> bool:
    try:
        return folder.lstat().st_uid == os.geteuid() and has_ended((folder / _LEASE).read_text())
    except OSError:  # no folder, or one that is being made
        return False
