"""Checks paths that a file of unknown origin names. Here, because tasks import nothing of the engine."""

from __future__ import annotations

from pathlib import Path


def is_visible_below(place: Path, folder: Path) -> bool:
    """Return whether a path is in a folder, or is it, and is not hidden there. Both need resolved links."""
    if not place.is_relative_to(folder):
        return False
    # Hidden files, such as .env and .git, were there before the file that names them.
    return not any(part.startswith(".") for part in place.relative_to(folder).parts)
