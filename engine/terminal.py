"""What stderr can show: redrawn panels, or only lines; how wide."""

from __future__ import annotations

import os
import sys
import textwrap

# Such a terminal cannot move its cursor.
_NO_CURSOR = frozenset({"dumb", "unknown"})

_COMMAND = "supdist-engine "


def can_redraw() -> bool:
    """Return whether stderr is a terminal that can draw over what it shows."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in _NO_CURSOR


def wrapped(text: str) -> str:
    """Wrap lines at words for the terminal of stderr. Those for a file or pipe are not wrapped."""
    if not sys.stderr.isatty():
        return text
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return text
    # Some terminals report no size.
    return text if columns < 10 else "\n".join(_wrapped(line, columns) for line in text.split("\n"))


def _wrapped(line: str, columns: int) -> str:
    # A command, path or URL must be copied whole: the terminal joins lines that it broke itself.
    if len(line) <= columns or _COMMAND in line:
        return line
    return textwrap.fill(line, columns, break_long_words=False, break_on_hyphens=False)
