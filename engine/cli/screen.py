"""Show a run on stderr: as a panel, as lines, or not at all."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

from ..events import Event
from ..terminal import can_redraw


class Screen(Protocol):
    """Shows a run."""

    def note(self, text: str) -> None:
        """Print a line that stays."""
        ...

    def on_event(self, event: Event) -> None:
        """Show an event."""
        ...


@contextmanager
def display(query: str, *, quiet: bool) -> Generator[Screen]:
    """Yield the screen of a run: none, a live panel on a terminal, else lines."""
    if quiet:
        yield _Silent()
    elif can_redraw():
        # Inside: rich takes 50 ms to import.
        from .panel import live_panel

        with live_panel(query) as panel:
            yield panel
    else:
        from .lines import plain_lines

        with plain_lines() as lines:
            yield lines


class _Silent:
    def note(self, text: str) -> None:
        pass

    def on_event(self, event: Event) -> None:
        pass
