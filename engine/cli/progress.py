"""What a run does, what it has done and what is left, in words, from its events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...handlers import Usage
from ...handlers.retries import REASON_WORDS
from ...sandbox_image.text import counted
from ..events import (
    BlockEnded,
    BlockStarted,
    Event,
    Metrics,
    Retrying,
    RunEnded,
    RunStarted,
    SupervisorReplied,
    SupervisorWrote,
    TurnStarted,
)
from .failures import kinds_in_words

if TYPE_CHECKING:
    from ..events import ModelRole


class Progress:
    """Follows a run.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = self._state_began = self._metrics_came = clock()
        self._state = "opening the sandbox"
        self._turn, self._turns = 0, 0
        self._written = 0
        self._supervisor = Usage()
        self._metrics = Metrics()
        # A bar and a rate for each block: those of earlier ones say nothing about this one.
        self._before = Metrics()
        self._calls_began: float | None = None
        self._retries: dict[ModelRole, _Retries] = {
            "supervisor": _Retries(clock),
            "worker": _Retries(clock),
        }

    def add(self, event: Event) -> None:
        """Take an event."""
        match event:
            case RunStarted(max_iterations=turns):
                self._turns = turns
            case TurnStarted(step):
                self._turn, self._written = step, 0
                self._enter("waiting for the supervisor")
            case SupervisorWrote(text=text):
                self._wrote(text)
            case SupervisorReplied(usage=usage):
                self._supervisor += usage
            case BlockStarted(block=block, blocks=blocks):
                self._before, self._calls_began = self._metrics, None
                self._enter(f"running block {block} of {blocks}")
            case BlockEnded(result=result):
                self._enter(f"block ended: {result.outcome.value}")
            case Metrics():
                self._take(event)
            case Retrying():
                self._retries[event.role].add(event)
            case RunEnded(how=how):
                self._enter("ends" if how == "result" else f"ends: {how}")
            case _:
                pass

    def _wrote(self, text: str) -> None:
        if not self._written:
            self._enter("")
        self._written += len(text)
        self._state = f"the supervisor writes, {self._written:,} characters"

    def _take(self, metrics: Metrics) -> None:
        self._metrics, self._metrics_came = metrics, self._clock()
        if self._calls_began is None and metrics.in_flight + metrics.queued:
            self._calls_began = self._metrics_came

    @property
    def done(self) -> int:
        """The worker's prompts of this block that have a result."""
        return self._metrics.done - self._before.done

    @property
    def total(self) -> int:
        """All prompts of this block that are known."""
        return self.done + self._metrics.in_flight + self._metrics.queued

    def now(self) -> str:
        """Return the turn, the time, and what is being done."""
        waited = self._clock() - self._state_began
        # A short wait needs no second clock.
        more = f", for {duration(waited)}" if waited >= 1 and self._turn > 0 else ""
        turn = [self._turn_of()] if self._turn else []
        return " · ".join([*turn, duration(self._clock() - self._started), self._state + more])

    def _turn_of(self) -> str:
        return f"turn {self._turn} of {self._turns}" if self._turns else f"turn {self._turn}"

    def calls(self) -> str:
        """Return the worker calls of this block: done of all, and when the rest will have ended."""
        if not self.total:
            return ""
        seconds = self.seconds_left()
        rest = "" if seconds is None else f" · ETA {duration(seconds)}"
        return f"{self.done:,} of {counted(self.total, 'worker call')}{rest}"

    def waiting(self) -> str:
        """Return what the calls without a result do, and how many had one in the cache."""
        counts = {
            "in flight": self._metrics.in_flight,
            "queued": self._metrics.queued,
            "cached": self._metrics.cached - self._before.cached,
        }
        return " · ".join(f"{count:,} {name}" for name, count in counts.items() if count)

    def seconds_left(self) -> float | None:
        """Return when the known calls will have ended; None if that cannot be said."""
        cached = self._metrics.cached - self._before.cached
        ended, rest = self.done - cached, self.total - self.done
        if self._calls_began is None or ended <= 0 or rest <= 0:
            return None
        # On average, half of the work of a call in flight is done. Else the first wave looks far too slow.
        half = self._metrics.in_flight / 2
        return (rest - half) * (self._clock() - self._calls_began) / (ended + half)

    def failed(self) -> str:
        """Return how many worker calls of the run failed, and why; empty for none."""
        metrics = self._metrics
        if not metrics.failed:
            return ""
        why = kinds_in_words(metrics.failed_calls)
        return f"{metrics.failed:,} worker call{'s' if metrics.failed != 1 else ''} failed: {why}"

    def retrying(self) -> list[str]:
        """Return a line for each model whose requests wait before they are sent again."""
        lines = {role: retries.waiting() for role, retries in self._retries.items()}
        return [f"{role}: {line}" for role, line in lines.items() if line]

    def supervisor(self) -> str:
        """Return the supervisor's calls, tokens, retries and dollars; empty before its first reply."""
        return self._model("supervisor", self._supervisor, self._metrics.supervisor_cost_usd)

    def worker(self) -> str:
        """Return the worker's."""
        return self._model("worker", self._metrics.usage, self._metrics.worker_cost_usd)

    def _model(self, role: ModelRole, usage: Usage, cost: float | None) -> str:
        parts: list[str] = []
        if usage.calls:
            thoughts = f" ({usage.reasoning_tokens:,} of thoughts)" if usage.reasoning_tokens else ""
            parts.append(f"{usage.calls:,} call{'s' if usage.calls != 1 else ''}")
            parts.append(f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out{thoughts}")
        if count := self._retries[role].count:
            parts.append(f"{count:,} retr{'ies' if count != 1 else 'y'}")
        # Zero is left out: local models cost nothing.
        if usage.calls and cost != 0:
            parts.append(dollars(cost))
        return " · ".join(parts)

    def left(self) -> str:
        """Return what is left of the budget, turns included."""
        parts: list[str] = []
        if self._turns:
            turns = self._turns - self._turn
            parts.append(f"{turns:,} turn{'s' if turns != 1 else ''}")
        left = self._metrics.left
        if left is not None:
            parts += [] if left.worker_calls is None else [counted(left.worker_calls, "worker call")]
            parts += [] if left.tokens is None else [f"{left.tokens:,} tokens"]
            parts += [] if left.dollars is None else [dollars(left.dollars)]
            if left.seconds is not None:
                parts.append(duration(max(0.0, left.seconds - (self._clock() - self._metrics_came))))
        return " · ".join(parts)

    def line(self) -> str:
        """Return all of it in one line."""
        parts = [self.now(), self.calls(), self.waiting(), self.failed(), *self.retrying()]
        parts.append(self._spent())
        return " · ".join([*filter(None, parts), f"left: {self.left()}"])

    def stopped(self) -> str:
        """Return one line about a run that was stopped; empty if nothing was asked yet."""
        if not self._turn:
            return ""
        metrics = self._metrics
        done = f"{metrics.done:,} worker call{'s' if metrics.done != 1 else ''} done" if metrics.done else ""
        parts = [self._turn_of(), done, self.failed()]
        parts.append(self._spent())
        return f"stopped after {duration(self._clock() - self._started)}: {', '.join(filter(None, parts))}"

    def _spent(self) -> str:
        cost = self._metrics.cost_usd
        if not cost:
            return "" if cost is not None else dollars(None)
        return f"{dollars(cost)} spent"

    def _enter(self, state: str) -> None:
        self._state, self._state_began = state, self._clock()


class _Retries:
    """The requests of one model that wait before they are sent again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due: list[float] = []
        self._last: Retrying | None = None
        self.count = 0

    def add(self, retry: Retrying) -> None:
        now = self._clock()
        self.count += 1
        self._last = retry
        self._due = [due for due in self._due if due > now] + [now + retry.seconds]

    def waiting(self) -> str:
        now, last = self._clock(), self._last
        due = [each - now for each in self._due if each > now]
        if last is None or not due:
            return ""
        others = f" ({len(due):,} calls wait)" if len(due) > 1 else ""
        seconds = math.ceil(max(due))
        return f"{REASON_WORDS[last.reason]}, again in {seconds} s, {last.attempt} of {last.attempts}{others}"


def dollars(cost: float | None) -> str:
    """Return dollars, or that the price is unknown."""
    return "price unknown" if cost is None else f"${cost:,.4f}"


def duration(seconds: float) -> str:
    """Return whole seconds, from two minutes on also minutes and hours."""
    whole = math.ceil(seconds) if seconds < 1 else round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, whole = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {whole} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
