"""Show runs, a model server and the doctor's findings. Progress goes to stderr, findings to stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

from ...handlers import Usage
from ...sandbox_image.text import printable
from ..events import (
    BlockEnded,
    BlockStarted,
    Event,
    Metrics,
    RunStarted,
    SupervisorReplied,
    SupervisorWrote,
    TurnStarted,
    Warned,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

    from ..result import RunResult
    from ..sandbox.doctor import Finding
    from ..service import Load

_CODE_LINES = 8
_PIPE_COLUMNS = 1000  # a line of a file or pipe is not wrapped


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
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, highlight=False)
        panel = _Panel(query, console)
        # Transient: the summary replaces the panel when the run ends.
        with Live(panel, console=console, refresh_per_second=8, transient=True):
            yield panel


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
    if not sys.stderr.isatty():
        yield _Lines()
    else:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, highlight=False)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _StatusLine(live)


def summary(result: RunResult, log_dir: str | None) -> str:
    """Return one line about a run that has ended."""
    best = "no answer" if result.answer is None else "best answer"
    ends = {
        "final": "answered",
        "max_iterations": f"all turns used, {best}",
        "timeout": f"time limit reached, {best}",
        "sandbox_lost": f"sandbox lost, {best}",
        "budget": f"budget used, {best}",
        "worker_failed": "worker failed",
        "cut_off": f"replies cut off at max_tokens, {best}",
        "cancelled": "cancelled",
    }
    turns = f"{result.iterations} turn{'s' if result.iterations != 1 else ''}"
    parts = [
        f"{ends[result.stop_reason]} in {turns}",
        f"{result.elapsed:.1f} s",
        f"supervisor {_tokens(result.supervisor_usage)}",
        f"worker {_tokens(result.worker_usage)}",
        # Zero is left out: local models cost nothing. None means an unknown price.
        *([_dollars(result.cost_usd)] if result.cost_usd != 0 else []),
        f"{result.isolation.backend} sandbox",
    ]
    return " · ".join(parts) + (f" · logs in {printable(log_dir)}" if log_dir else "")


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


def _tokens(usage: Usage) -> str:
    calls = f"{usage.calls:,} call{'s' if usage.calls != 1 else ''}"
    return f"{calls} {usage.input_tokens:,} in {usage.output_tokens:,} out"


class _Silent:
    def note(self, text: str) -> None:
        pass

    def on_event(self, event: Event) -> None:
        pass


class _Lines:
    """Prints a line for each turn and block that has ended."""

    def __init__(self) -> None:
        self._done = 0

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def show(self, load: Load) -> None:
        pass

    def on_event(self, event: Event) -> None:
        match event:
            case SupervisorReplied():
                self.note(f"turn {event.step}: supervisor {_tokens(event.usage)}, {event.elapsed:.1f} s")
            case BlockEnded():
                result = event.result
                name = f": {printable(result.error.type)}" if result.error else ""
                output = len(result.stdout) + len(result.stderr)
                self.note(
                    f"turn {event.step}: block {result.outcome.value}{name}, {result.elapsed:.1f} s, "
                    f"{output:,} characters, {self._done} worker calls so far"
                )
            case Warned():
                self.note(f"warning: {printable(event.text)}")
            case Metrics():
                # Shown with the next block: these events come every second.
                self._done = event.done
            case _:
                pass


def _calls(metrics: Metrics) -> str:
    counts = {
        "in flight": metrics.in_flight,
        "queued": metrics.queued,
        "failed": metrics.failed,
        "cached": metrics.cached,
    }
    # "0 in flight" is shown too: then the run waits for something else.
    parts = [f"{count:,} {name}" for name, count in counts.items() if count or name == "in flight"]
    cost = [_dollars(metrics.cost_usd)] if metrics.cost_usd != 0 else []
    return " · ".join([", ".join(parts), _tokens(metrics.usage), *cost])


def _dollars(cost: float | None) -> str:
    return "price unknown" if cost is None else f"${cost:,.4f}"


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


class _Panel:
    def __init__(self, query: str, console: Console) -> None:
        self._query = printable(" ".join(query.split()))
        self._console = console
        self._started = time.monotonic()
        self._turn, self._turns = 0, 0
        self._state = "starting the sandbox"
        self._code = ""
        self._written = 0
        self._supervisor = Usage()
        self._workers = Metrics()

    def note(self, text: str) -> None:
        self._console.print(text, style="yellow", markup=False)

    def on_event(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._turns = event.max_iterations
            case TurnStarted():
                self._turn, self._state, self._written = event.step, "waiting for the supervisor", 0
            case SupervisorWrote():
                self._written += len(event.text)
                self._state = f"the supervisor has written {self._written:,} characters"
            case SupervisorReplied():
                self._supervisor += event.usage
            case BlockStarted():
                # The supervisor wrote it: escape sequences must not reach the terminal.
                self._code = printable(event.code)
                self._state = f"running block {event.block} of {event.blocks}"
            case BlockEnded():
                self._state = f"block ended: {event.result.outcome.value}"
            case Metrics():
                self._workers = event
            case Warned():
                self.note(f"warning: {printable(event.text)}")
            case _:
                pass

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.syntax import Syntax
        from rich.table import Table
        from rich.text import Text

        seconds = time.monotonic() - self._started
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", justify="right")
        facts.add_column(no_wrap=True, overflow="ellipsis")
        facts.add_row("turn", Text(f"{self._turn} of {self._turns or '?'} · {self._state} · {seconds:.0f} s"))
        facts.add_row("supervisor", Text(_tokens(self._supervisor)))
        facts.add_row("worker", Text(_calls(self._workers)))
        parts: list[RenderableType] = [facts]
        if self._code:
            lines = self._code.strip("\n").splitlines()
            # A long block must not push the counts off the screen.
            more = [f"# … {len(lines) - _CODE_LINES} more lines"] if len(lines) > _CODE_LINES else []
            code = "\n".join(lines[:_CODE_LINES] + more)
            parts.append(Syntax(code, "python", background_color="default", word_wrap=False))
        # As Text: brackets in a question are no markup.
        # The terminal shows "^C" after the last line. If it wraps, the first line is not erased.
        width = max(self._console.width - 2, 1)
        title = Text(self._query[:100])
        return Panel(Group(*parts), title=title, title_align="left", border_style="cyan", width=width)
