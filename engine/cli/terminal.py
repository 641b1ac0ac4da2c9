"""What stderr can show: redrawn panels, or only lines; how wide."""

from __future__ import annotations

import os
import sys
import textwrap

# Such a terminal cannot move its cursor.
_NO_CURSOR = frozenset({"dumb", "unknown"})


def can_redraw() -> bool:
    """Return whether stderr is a terminal that can draw over what it shows."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in _NO_CURSOR


def wrapped(line: str) -> str:
    """Wrap a line at words for the terminal of stderr. A line of a file or pipe is not wrapped."""
    if not sys.stderr.isatty():
        return line
    try:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    except OSError:
        return line
    # Some terminals report no size.
    return line if len(line) <= columns or columns < 10 else "\n".join(textwrap.wrap(line, columns))
