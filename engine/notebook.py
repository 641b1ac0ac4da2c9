"""Shows a run's progress in a Jupyter notebook."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from .events import BlockStarted, Event, Metrics, RunEnded, RunStarted, SupervisorReplied, TurnStarted

# Each update is a message to the browser.
_SECONDS_BETWEEN = 0.25


@contextmanager
def notebook_progress() -> Generator[Callable[[Event], None] | None]:
    """Yield a function that shows events below the cell; None outside of a notebook."""
    if not _is_notebook():
        yield None
        return
    display_module: Any = import_module("IPython.display")

    progress = _Progress()
    html: Any = display_module.HTML
    shown: Any = display_module.display(html(progress.as_html()), display_id=True)

    def on_event(event: Event) -> None:
        if progress.note(event):
            shown.update(html(progress.as_html()))

    try:
        yield on_event
    finally:
        progress.end()
        shown.update(html(progress.as_html()))


def _is_notebook() -> bool:
    # Not imported: where a notebook runs, IPython is there.
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    # IPython in a terminal has another shell.
    return shell is not None and hasattr(shell, "kernel")


class _Progress:
    def __init__(self) -> None:
        self._started = time.monotonic()
        self._shown = 0.0
        self._turns = 0
        self._turn = 0
        self._doing = "opens the sandbox"
        self._metrics = Metrics()
        self._supervisor_tokens = 0
        self._has_ended = False

    def note(self, event: Event) -> bool:
        """Take an event in; return whether to show it now."""
        match event:
            case RunStarted(max_iterations=turns):
                self._turns = turns
            case TurnStarted(step):
                self._turn, self._doing = step, "asks the supervisor"
            case SupervisorReplied(usage=usage):
                self._supervisor_tokens += usage.input_tokens + usage.output_tokens
            case BlockStarted(block=block, blocks=blocks):
                self._doing = f"runs block {block} of {blocks}"
            case Metrics():
                self._metrics = event
            case RunEnded(how=how):
                self._doing = "ended" if how == "result" else how
            case _:
                return False
        now = time.monotonic()
        if now - self._shown < _SECONDS_BETWEEN:
            return False
        self._shown = now
        return True

    def end(self) -> None:
        self._has_ended = True

    def as_html(self) -> str:
        """Return one line, and a bar while worker calls are under way."""
        worker = self._metrics
        asked = worker.done + worker.queued + worker.in_flight
        facts = [f"turn {self._turn} of {self._turns}" if self._turns else "starts", self._doing]
        if asked:
            failed = f' (<span style="color:#c00">{worker.failed:,} failed</span>)' if worker.failed else ""
            facts.append(f"worker {worker.done:,} of {asked:,}{failed}")
        tokens = self._supervisor_tokens + worker.usage.input_tokens + worker.usage.output_tokens
        if tokens:
            facts.append(f"{tokens:,} tokens")
        if worker.cost_usd:
            facts.append(f"${worker.cost_usd:,.4f}")
        facts.append(f"{time.monotonic() - self._started:.1f} s")
        is_waiting = asked > worker.done and not self._has_ended
        bar = f' <progress max="{asked}" value="{worker.done}"></progress>' if is_waiting else ""
        return f"<div><small>supdist: {' · '.join(facts)}{bar}</small></div>"
