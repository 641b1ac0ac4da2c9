"""Counts the prompts of a run's worker calls, and decides whether the worker is dead for good."""

from __future__ import annotations

import asyncio
from collections import Counter
from threading import Lock

from ...handlers import NoAccess, Unreachable
from ..result import FailedCall

# Their retries are used up, and no other call can do better.
_FOR_GOOD = (NoAccess, Unreachable)
# Prompts of one batch that fail so before the rest of the batch is not sent.
_FAILED_PROMPTS = 8

# They may pass. Each call has had its own retries, and the supervisor may wait and try again.
_MAY_PASS: frozenset[FailedCall] = frozenset({"rate_limit", "timeout", "unavailable", "handler_error"})
# Whole calls that fail so, before the worker counts as dead.
_FAILED_CALLS = 3

# Of these the worker is not the reason.
_NOT_THE_WORKERS: frozenset[FailedCall] = frozenset({"too_long", "budget_exceeded"})

# The model is alive, whatever it replies.
_REPLIES: frozenset[FailedCall] = frozenset({"refusal", "cut_off"})


class WorkerHealth:
    """The prompts of a run and of the runs inside it, which may be in other threads.

    Attributes:
        failed: prompts without an answer, by kind.
        death: done when the worker of this run is dead for good.
    """

    # A worker that has answered is never dead: its run goes on, and the result counts what failed.

    def __init__(self, outer: WorkerHealth | None = None) -> None:
        self.failed = Counter[FailedCall]()
        self.death: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outer = outer
        self._lock = Lock()
        self._answered = 0
        self._cached = 0
        self._failed_for_good = 0
        self._failed_calls = 0
        self._error: Exception | None = None

    @property
    def done(self) -> int:
        """Prompts with a result."""
        return self._answered + self._cached + self.failed.total()

    @property
    def is_dead(self) -> bool:
        """Whether no call can succeed any more."""
        return self.death.done()

    @property
    def failure(self) -> Exception | None:
        """Why the worker answered nothing; None if it did, or if no prompt failed because of it."""
        return self._error if self.is_dead or not self._answered + self._cached else None

    def add_answer(self, *, cached: bool) -> None:
        """Count an answer. One from the cache does not say that the model is alive."""
        with self._lock:
            self._cached += cached
            self._answered += not cached
        if self._outer is not None:
            self._outer.add_answer(cached=cached)

    def add_failure(self, error: Exception | None, kind: FailedCall) -> None:
        """Count a prompt without an answer. Without an error the model has replied."""
        with self._lock:
            self.failed[kind] += 1
            if isinstance(error, _FOR_GOOD):
                self._failed_for_good += 1
            if kind not in _NOT_THE_WORKERS and not isinstance(self._error, _FOR_GOOD):
                self._error = error
        if self._outer is not None:
            self._outer.add_failure(error, kind)

    def check_prompts(self) -> None:
        """Decide after a failed prompt whether the worker is dead. The rest of its batch is then not sent."""
        if self._failed_for_good >= _FAILED_PROMPTS and not self._answered:
            self._die()

    def end_call(self, kinds: frozenset[FailedCall]) -> None:
        """Decide at the end of a call, whose prompts failed in these ways."""
        if self._answered or self.failed.keys() & _REPLIES:
            return
        if self._failed_for_good:
            self._die()
        elif kinds & _MAY_PASS and not self._cached:
            self._failed_calls += 1
            if self._failed_calls == _FAILED_CALLS:
                self._die()

    def _die(self) -> None:
        if not self.death.done():
            self.death.set_result(None)
