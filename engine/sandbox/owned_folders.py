"""Temporary folders that name their owner. Another process can remove them after its death."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

from .owner import current_owner, has_ended

# A folder may hold anything, and a temporary folder of many users may hold very many.
_MOST_REMOVED = 100
# An owner has colons, which mean something in a mount's description.
_COLON = "+"


def make_owned_folder(kind: str, place: str | None = None) -> str:
    """Make ``supdist-KIND-OWNER-RANDOM`` in a place, and remove those of the same kind of dead processes.

    Args:
        place: a folder; by default that of ``tempfile``.

    Raises:
        OSError: there is no such place, or no room in it.
    """
    place = tempfile.gettempdir() if place is None else place
    sweep(kind, place)
    # The owner is in the name: a folder is never without one, whenever its process is killed.
    owner = current_owner().replace(":", _COLON)
    return tempfile.mkdtemp(prefix=f"{_prefix(kind)}{owner}-", dir=place)


def sweep(kind: str, place: str | None = None) -> None:
    """Remove the folders of a kind whose owner, a process of this user, has ended."""
    prefix, left = _prefix(kind), _MOST_REMOVED
    # Where there is no such place, nothing is left in it.
    with (
        contextlib.suppress(OSError),
        os.scandir(tempfile.gettempdir() if place is None else place) as entries,
    ):
        for entry in entries:
            if left and entry.name.startswith(prefix) and _is_left_over(entry, len(prefix)):
                left -= 1
                # It follows no links.
                shutil.rmtree(entry.path, ignore_errors=True)


def _prefix(kind: str) -> str:
    return f"supdist-{kind}-"


def _is_left_over(entry: os.DirEntry[str], prefix_chars: int) -> bool:
    owner = entry.name[prefix_chars:].rpartition("-")[0].replace(_COLON, ":")
    try:
        if not entry.is_dir(follow_symlinks=False):
            return False
        if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
            return False
    except OSError:  # removed meanwhile
        return False
    return has_ended(owner)
