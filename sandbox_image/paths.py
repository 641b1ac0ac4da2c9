"""Check paths that an untrusted file names."""

# Not in the engine: tasks import nothing of it.

from __future__ import annotations

from pathlib import Path


def is_visible_below(place: Path, folder: Path) -> bool:
    """Return whether a resolved path is in a resolved folder, and not hidden."""
    if not place.is_relative_to(folder):
        return False
    # Hidden files, such as .env and .git, were there before the file that names them.
    return not any(part.startswith(".") for part in place.relative_to(folder).parts)
