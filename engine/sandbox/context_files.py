"""Writes contexts into files that containers mount."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .context import EncodedContext, Kind, encode_context
from .owned_folders import make_owned_folder
from .owner import current_owner

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
    """Make a folder for contexts of this process, and remove those of dead processes.

    Raises:
        OSError: no place can be written.
    """
    folder = make_owned_folder("contexts", _place())
    Path(folder, _OWNER_FILE).write_text(current_owner())
    return folder


def _place() -> str | None:
    # A guest can read the path below its file system's root. In memory that path tells nothing of the host.
    if os.access(_MEMORY, os.W_OK) and os.path.ismount(_MEMORY):
        room = os.statvfs(_MEMORY)
        if room.f_bavail * room.f_frsize >= _ENOUGH_BYTES:
            return _MEMORY
    return None
