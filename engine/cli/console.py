"""Show a model server on stderr, and the doctor's findings on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

from ...sandbox_image.text import printable
from ..terminal import can_redraw
from .lines import Lines

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from ..sandbox.doctor import Finding
    from ..service import Load

_PIPE_COLUMNS = 1000  # a line of a file or pipe is not wrapped


class ServiceScreen(Protocol):
    """Shows a model server."""

    def note(self, text: str) -> None:
        """Print a line that stays."""
        ...

    def show(self, load: Load) -> None:
        """Show the server's present load."""
        ...


@contextmanager
def service_screen() -> Generator[ServiceScreen]:
    """Yield the screen of a model server: one refreshed line on a terminal, else only notes."""
    if not can_redraw():
        yield Lines()
    else:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, highlight=False)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _StatusLine(live)


def print_findings(backend: str, findings: list[Finding], *, as_json: bool) -> bool:
    """Print the doctor's findings; return whether the default level of isolation holds."""
    from rich.console import Console

    # Inside: runs do not need the doctor.
    from ..sandbox.doctor import default_level_holds

    holds = default_level_holds(findings)
    if as_json:
        found = [asdict(finding) for finding in findings]
        print(json.dumps({"backend": backend, "holds": holds, "findings": found}))
        return holds
    Console(width=None if sys.stdout.isatty() else _PIPE_COLUMNS).print(findings_table(findings))
    if holds:
        print("The default level holds.")
    else:
        print("The default level does not hold: `supdist-engine run` refuses to start (exit code 4).")
    return holds


def findings_table(findings: list[Finding]) -> Table:
    """Return a row for each layer, and below it the remedy."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "layer", "measured", box=None, header_style="dim", pad_edge=False)
    for finding in findings:
        mark, style = ("FAIL", "red") if finding.required else ("--", "yellow")
        if finding.holds:
            mark, style = "ok", "green"
        # As Text: what was measured is a guest's text, and markup in it stays text.
        table.add_row(Text(mark, style), finding.layer.value, Text(printable(finding.measured)))
        if finding.remedy:
            table.add_row("", "", Text(f"→ {printable(finding.remedy)}"))
    return table


class _StatusLine:
    def __init__(self, live: Live) -> None:
        self._live = live

    def note(self, text: str) -> None:
        # A note may name what a client sent.
        self._live.console.print(printable(text), markup=False)

    def show(self, load: Load) -> None:
        from rich.text import Text

        clients = f"{load.engines} client{'s' if load.engines != 1 else ''}"
        line = f"{clients} · {load.running:,} running · {load.queued:,} queued · {load.done:,} done"
        self._live.update(Text(line, style="dim", no_wrap=True, overflow="ellipsis"), refresh=True)
