"""Shows a run where no panel can be drawn: a line for each turn and block, and one each ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...sandbox_image.text import counted, printable
from ..events import BlockEnded, Event, Metrics, SupervisorReplied, Warned
from ..terminal import wrapped
from .no_code import TurnsWithoutCode
from .progress import Progress

if TYPE_CHECKING:
    from ..service import Load

_SECONDS = 10.0


@contextmanager
def plain_lines() -> Generator[Lines]:
    """Show a run in lines. If it is stopped, the last one says what was done."""
    lines = Lines()
    try:
        yield lines
    except BaseException:
        lines.stopped()
        raise


class Lines:
    """Prints lines on stderr.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._progress = Progress(clock)
        self._without_code = TurnsWithoutCode()
        self._next = clock() + _SECONDS

    def note(self, text: str) -> None:
        """Print a line."""
        print(wrapped(printable(text)), file=sys.stderr, flush=True)
        self._next = self._clock() + _SECONDS

    def show(self, load: Load) -> None:
        """Show nothing: the load of a model server changes all the time."""

    def on_event(self, event: Event) -> None:
        """Show an event."""
        self._progress.add(event)
        if why := self._without_code.add(event):
            self.note(why)
        match event:
            case SupervisorReplied(step=step, usage=usage, elapsed=elapsed):
                tokens = f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"
                self.note(f"turn {step}: supervisor replied, {tokens}, {elapsed:.1f} s")
            case BlockEnded(step=step, result=result):
                name = f": {printable(result.error.type)}" if result.error else ""
                output = len(result.stdout) + len(result.stderr)
                parts = [f"block {result.outcome.value}{name}", f"{result.elapsed:.1f} s"]
                parts.append(f"{output:,} characters of output")
                if total := self._progress.total:
                    parts.append(f"{self._progress.done:,} of {counted(total, 'worker call')}")
                if failed := self._progress.failed():
                    parts.append(failed)
                self.note(f"turn {step}: {', '.join(parts)}")
            case Warned(text):
                self.note(f"warning: {text}")
            # They come at least every second, so no timer is needed.
            case Metrics() if self._clock() >= self._next:
                self.note(self._progress.line())
            case _:
                pass

    def stopped(self) -> None:
        """Print what was done."""
        if line := self._progress.stopped():
            self.note(line)
