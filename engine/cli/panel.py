"""Shows a run on a terminal: a panel that is drawn again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...sandbox_image.text import printable, shorten
from ..events import BlockStarted, Event, Warned
from .no_code import TurnsWithoutCode
from .progress import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

# A frame takes some milliseconds, and the event loop waits for it.
_FRAMES_A_SECOND = 4

_CODE_LINES, _CODE_COLUMNS = 8, 200
_TITLE = 200
_BAR, _SHORT_BAR = 20, 10
# Below this there is no room for a border and a column of names.
_NARROW = 60
# The lines of the panel without code.
_FACTS = 14


@contextmanager
def live_panel(query: str) -> Generator[Panel]:
    """Show a run in a panel. At the end it goes; if the run is stopped, a line says what was done."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    panel = Panel(query, console)
    live = Live(
        panel,
        console=console,
        refresh_per_second=_FRAMES_A_SECOND,
        # The summary replaces the panel when the run ends.
        transient=True,
        # What is printed on a stdout that is no terminal must get there.
        redirect_stdout=sys.stdout.isatty(),
    )
    try:
        with live:
            yield panel
    except BaseException:
        panel.stopped()
        raise


class Panel:
    """Draws a run.

    Args:
        clock: seconds.
    """

    def __init__(self, query: str, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        # Cut first: a query may have megabytes.
        self._query = shorten(printable(" ".join(query[:1000].split())), _TITLE)
        self._console = console
        self._progress = Progress(clock)
        self._without_code = TurnsWithoutCode()
        self._code = ""
        self._shown_code: Text | None = None

    def note(self, text: str) -> None:
        """Print a line that stays, above the panel."""
        from rich.text import Text

        # As Text: brackets and colons in it are no markup.
        self._console.print(Text(printable(text), "yellow"))

    def on_event(self, event: Event) -> None:
        """Show an event."""
        self._progress.add(event)
        if why := self._without_code.add(event):
            self.note(why)
        match event:
            case BlockStarted(code=code):
                self._code, self._shown_code = excerpt(code), None
            case Warned(text):
                self.note(f"warning: {text}")
            case _:
                pass

    def stopped(self) -> None:
        """Print what was done."""
        if line := self._progress.stopped():
            self.note(line)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel as Box
        from rich.text import Text

        # The terminal shows "^C" after the last line. If it wraps, the first line is not erased.
        width = max(self._console.width - 2, 1)
        narrow = width < _NARROW
        parts = [self._facts(narrow=narrow), *self._code_lines()]
        if narrow:
            return _Narrow(Group(Text(self._query, "bold", no_wrap=True, overflow="ellipsis"), *parts), width)
        title = Text(self._query)
        return Box(Group(*parts), title=title, title_align="left", border_style="cyan", width=width)

    def _facts(self, *, narrow: bool) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        progress = self._progress
        rows = [("now", Text(progress.now()))]
        if progress.total:
            bar = _bar(progress, _SHORT_BAR if narrow else _BAR)
            rows.append(("", Text.assemble(bar, "  ", progress.calls())))
        rows += [("", Text(text)) for text in (progress.waiting(),) if text]
        rows += [("", Text(line, "yellow")) for line in progress.retrying()]
        if failed := progress.failed():
            rows.append(("", Text(failed, "red")))
        named = {"supervisor": progress.supervisor(), "worker": progress.worker(), "left": progress.left()}
        rows += [(name, Text(text)) for name, text in named.items() if text]
        if narrow:
            return Group(*(_headed(name, row) for name, row in rows))
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", justify="right", no_wrap=True)
        facts.add_column()
        for name, row in rows:
            facts.add_row(name, row)
        return facts

    def _code_lines(self) -> list[Text]:
        # A long block must not push the counts off the screen.
        room = self._console.height - _FACTS
        if not self._code or room < 2:
            return []
        if self._shown_code is None:
            from rich.syntax import Syntax

            # Once for each block: it takes longer than all the rest.
            self._shown_code = Syntax("", "python", background_color="default").highlight(self._code)
            self._shown_code.rstrip()
        return [_cropped(line) for line in self._shown_code.split()[:room]]


class _Narrow:
    """A renderable with a width of its own."""

    def __init__(self, content: RenderableType, width: int) -> None:
        self._content = content
        self._width = width

    def __rich__(self) -> RenderableType:
        from rich.constrain import Constrain

        return Constrain(self._content, self._width)


def _bar(progress: Progress, columns: int) -> Text:
    from rich.text import Text

    # Of characters, so that it can be read without colours, too.
    done = columns * progress.done // progress.total
    return Text.assemble(("━" * done, "green"), ("─" * (columns - done), "dim"))


def _cropped(line: Text) -> Text:
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _headed(name: str, row: Text) -> Text:
    from rich.text import Text

    if not name or name == "now":
        return row
    return Text.assemble((f"{name}: ", "dim"), row)


def excerpt(code: str) -> str:
    """Return the first lines of code that a model wrote, safe for a terminal."""
    # Cut first: a block may have megabytes, and the event loop waits.
    head = code[: _CODE_LINES * _CODE_COLUMNS * 2].strip("\n").split("\n")
    shown = [printable(line[:_CODE_COLUMNS].replace("\r", "")) for line in head[:_CODE_LINES]]
    more = code.strip("\n").count("\n") + 1 - len(shown)
    return "\n".join([*shown, f"# … {more:,} more line{'s' if more != 1 else ''}"] if more > 0 else shown)
