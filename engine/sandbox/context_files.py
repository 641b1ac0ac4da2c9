"""Writes contexts into files that containers mount."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from .context import EncodedContext, Kind, encode_context
from .owner import current_owner, has_ended

_FOLDER = "supdist-contexts-"
# Older engines look for this name when they remove what dead engines left.
_OWNER_FILE = "lease"
_MEMORY = "/dev/shm"
_ENOUGH_BYTES = 1 << 30


class ContextFiles:
    """Encodes contexts into files of one file system; the same text only once."""

    def __init__(self, folder: str) -> None:
        self._kept = os.path.join(folder, "kept")
        self._text: str | None = None

    def put(self, context: object, file: str) -> Kind:
        """Write the encoded context to ``file``, and return its encoding.

        Raises:
            TaskError, OSError: as ``encode_context``. A part may be left.
        """
        value = context.value if isinstance(context, EncodedContext) else context
        if self._text is not None and value is self._text:
            os.link(self._kept, file)
            return "text"
        with open(file, "xb") as stream:
            kind = encode_context(context, stream)
        # The guest is another user, and others may have a link to the same file.
        os.chmod(file, 0o444)
        if isinstance(value, str):  # which cannot change, see ContextMemory
            self._text = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._kept)
            os.link(file, self._kept)
            self._text = value
        return kind


def make_folder() -> str:
    """Make a folder for contexts of this process, and remove those of dead processes."""
    for other in (path for place in _places() for path in Path(place).glob(f"{_FOLDER}*")):
        if _is_left_over(other):
            shutil.rmtree(other, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=_FOLDER, dir=_places()[0])
    Path(folder, _OWNER_FILE).write_text(current_owner())
    return folder


def _places() -> list[str]:
    places = [tempfile.gettempdir()]
    # A guest can read the path below its file system's root. In memory that path tells nothing of the host.
    if os.access(_MEMORY, os.W_OK) and os.path.ismount(_MEMORY):
        room = os.statvfs(_MEMORY)
        places.insert(0 if room.f_bavail * room.f_frsize >= _ENOUGH_BYTES else 1, _MEMORY)
    return places


def _is_left_over(folder: Path) -> bool:
    try:
        return folder.lstat().st_uid == os.geteuid() and has_ended((folder / _OWNER_FILE).read_text())
    except OSError:  # no folder, or one that is being made
        return False
