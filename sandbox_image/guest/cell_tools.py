"""What cells find as IPython has it: ``display``, ``_``, the commands, and a loop for ``await``."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from .display import Displays
from .event_loop import CellLoop
from .magics import Magics
from .notebook import CALL

# Values of earlier cells. IPython keeps all of them (`Out`), and so their memory.
_LAST = ("_", "__", "___")


class CellTools:
    """They stand in ``builtins``, so that a name of the code comes first and is never replaced."""

    def __init__(self, namespace: dict[str, Any], is_current: Callable[[], bool]) -> None:
        self.loop = CellLoop()
        self._namespace = namespace
        self._is_current = is_current
        self._displays: Displays | None = None
        self._last: list[object] = []
        setattr(builtins, "display", self.display)  # noqa: B010 - type checkers know no such builtin

    def begin(self, displays: Displays, *, has_magics: bool) -> None:
        """Begin a cell."""
        self._displays = displays
        if has_magics:
            self._namespace[CALL] = Magics(self._namespace, self.display)

    def display(self, *values: object, raw: bool = False, **options: object) -> None:
        """Show values, as the last value of a cell is shown; with ``raw`` dicts of MIME types."""
        # A thread of an earlier cell shows nothing.
        if self._displays is not None and self._is_current():
            self._displays.display(*values, raw=raw)

    def show(self, value: object) -> None:
        """Show the value of a cell, and keep it as ``_``."""
        if value is None or self._displays is None:
            return
        found = builtins.__dict__
        # gettext.install() sets `_` too.
        if "_" not in found or (self._last and found["_"] is self._last[0]):
            self._last = [value, *self._last][: len(_LAST)]
            found.update(zip(_LAST, self._last, strict=False))
        self._displays.value(value)
