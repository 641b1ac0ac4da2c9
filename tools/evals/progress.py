"""Show on stderr how an experiment is going: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from ...engine.terminal import can_redraw
from ...sandbox_image.text import printable
from .records import Record
from .report import standing

if TYPE_CHECKING:
    from rich.progress import Progress

# Without a terminal, the standing is printed this often.
_LINE_SECONDS = 10.0

_SAME_FAILURES = 3


class Observer(Protocol):
    """Called by a running experiment, in the event loop; it must not block."""

    def note(self, text: str) -> None:
        """Show a line that stays."""
        ...

    def begin(self, total: int, ended: Sequence[Record]) -> None:
        """Take the number of examples, and the records of an earlier start."""
        ...

    def ended(self, record: Record) -> None:
        """Take the record of an example that has ended."""
        ...


@contextmanager
def progress(*, quiet: bool) -> Generator[Observer]:
    """Open the display that fits: none, a bar if stderr is a terminal, or lines."""
    if quiet:
        yield _Silent()
    elif not can_redraw():
        yield _Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=Console(stderr=True, highlight=False),
        )
        with bar:
            yield _Bar(bar)


class _Silent:
    def note(self, text: str) -> None:
        pass

    def begin(self, total: int, ended: Sequence[Record]) -> None:
        pass

    def ended(self, record: Record) -> None:
        pass


class _Lines:
    def __init__(self) -> None:
        self._records: list[Record] = []
        self._failures = _Failures()
        self._examples = 0
        self._next_line = 0.0

    def note(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)

    def begin(self, total: int, ended: Sequence[Record]) -> None:
        self._examples, self._records = total, list(ended)
        before = f", {len(ended)} of them ended before" if ended else ""
        self.note(f"{total} examples{before}")

    def ended(self, record: Record) -> None:
        self._records.append(record)
        if failure := self._failures.line(record):
            self.note(failure)
        # Not every standing has a line, so that a log stays short.
        if time.monotonic() >= self._next_line or len(self._records) == self._examples:
            self.note(f"{len(self._records)}/{self._examples} · {standing(self._records)}")
            self._next_line = time.monotonic() + _LINE_SECONDS


class _Bar:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("preparing", total=None)
        self._failures = _Failures()
        self._records: list[Record] = []

    def note(self, text: str) -> None:
        self._print(text, "yellow")

    def _print(self, text: str, style: str) -> None:
        from rich.text import Text

        # Through the bar's console, which prints above the bar. As Text: brackets and colons are no markup.
        self._bar.console.print(Text(printable(text), style))

    def begin(self, total: int, ended: Sequence[Record]) -> None:
        self._records = list(ended)
        self._bar.reset(self._task, total=total, description=standing(self._records))
        self._bar.update(self._task, completed=len(ended))

    def ended(self, record: Record) -> None:
        self._records.append(record)
        if failure := self._failures.line(record):
            self._print(failure, "red")
        self._bar.update(self._task, advance=1, description=standing(self._records))


class _Failures:
    """The lines of failed examples. With a dead endpoint all fail in the same way; three lines say so."""

    def __init__(self) -> None:
        self._seen = Counter[tuple[str, str]]()

    def line(self, record: Record) -> str:
        """Return the line of a record; empty if it did not fail, or as others before it."""
        error = record.error
        if error is None:
            return ""
        kind = error.type, error.message
        self._seen[kind] += 1
        if self._seen[kind] > _SAME_FAILURES:
            return ""
        what = "failed" if error.stage == "run" else "could not be judged"
        more = "; more of these are only counted" if self._seen[kind] == _SAME_FAILURES else ""
        return f"{record.example} {what}: {error.type}: {error.message}{more}"
