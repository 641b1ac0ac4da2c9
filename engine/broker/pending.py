"""Answers that several runs wait for; see "Joined requests" in engine/README.md."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import cache as once
from threading import RLock
from typing import Protocol

from ...handlers import Completion

_CacheKey = tuple[str, bytes]

# Runs may be in different threads, each with an event loop. The garbage collector may end a request of a
# closed loop in a thread that has the lock.
_lock = RLock()


class Waiter(Protocol):
    """A request that waits for an answer."""

    def wake(self, answer: Completion | None) -> None:
        """Take the answer; None: send again. Called in the waiter's event loop."""
        ...


class PendingAnswer:
    """One answer under way, and its waiters."""

    def __init__(self, registry: dict[_CacheKey, PendingAnswer], cache_key: _CacheKey) -> None:
        self._registry = registry
        self._cache_key = cache_key
        self._waiters: dict[Waiter, asyncio.AbstractEventLoop] = {}
        self._sender: Waiter | None = None
        self._has_failed = False

    def add(self, waiter: Waiter) -> None:
        """Add a waiter. The caller holds the lock."""
        self._waiters[waiter] = asyncio.get_running_loop()

    def is_sent_by_other(self, waiter: Waiter) -> bool:
        """Return whether another waiter sent the request."""
        with _lock:
            return self._must_wait(waiter)

    def claim(self, waiter: Waiter) -> bool:
        """Become the sender unless there is one."""
        with _lock:
            if self._must_wait(waiter):
                return False
            self._sender = waiter
            return True

    def _must_wait(self, waiter: Waiter) -> bool:
        # A waiter that is missing has its answer on the way from another event loop.
        is_sent = self._sender is not None and self._sender is not waiter
        return waiter not in self._waiters or (is_sent and not self._has_failed)

    def _forget(self) -> None:
        # By now the registry may hold a newer one for this key.
        if self._registry.get(self._cache_key) is self:
            del self._registry[self._cache_key]

    def resolve(self, waiter: Waiter, answer: Completion) -> None:
        """Give the answer to all others."""
        with _lock:
            others, self._waiters = self._waiters, {}
            self._forget()
        others.pop(waiter, None)
        _wake(others, answer)

    def leave(self, waiter: Waiter, *, failed: bool = False) -> None:
        """Stop waiting. If the sender leaves, the others send again."""
        with _lock:
            self._waiters.pop(waiter, None)
            if not self._waiters:
                self._forget()
            if self._sender is not waiter:
                return
            self._sender = None
            # The sender's key or deadline may be the reason. From now on each sends its own.
            self._has_failed |= failed
            others = dict(self._waiters)
        _wake(others, None)


class SharedRequest:
    """A request that only one of several runs sends."""

    def __init__(self) -> None:
        self.pending: PendingAnswer | None = None
        self._woken = asyncio.Event()
        self._answer: Completion | None = None

    def wake(self, answer: Completion | None) -> None:
        """See ``Waiter.wake``."""
        # A sender that failed wakes its waiters without the lock: its None may come after an answer.
        if self._answer is None:
            self._answer = answer
        self._woken.set()

    async def other_answer(self) -> Completion | None:
        """Return another run's answer; None: send it."""
        while self._answer is None and self.pending is not None and self.pending.is_sent_by_other(self):
            await self._woken.wait()
            self._woken.clear()
        return self._answer

    def claim(self) -> bool:
        """See ``PendingAnswer.claim``."""
        return self.pending is None or self.pending.claim(self)

    def resolve(self, answer: Completion) -> None:
        """See ``PendingAnswer.resolve``."""
        if self.pending is not None:
            self.pending.resolve(self, answer)

    def leave(self, *, failed: bool) -> None:
        """See ``PendingAnswer.leave``."""
        if self.pending is not None:
            self.pending.leave(self, failed=failed)


_pending: dict[_CacheKey, PendingAnswer] = {}


def join(cache: str, key: bytes, waiter: Waiter) -> PendingAnswer:
    """Join and return the pending answer of a key."""
    cache_key = (cache, key)
    with _lock:
        _watch_forks()
        pending = _pending.get(cache_key)
        if pending is None:
            pending = _pending[cache_key] = PendingAnswer(_pending, cache_key)
        pending.add(waiter)
        return pending


@once
def _watch_forks() -> None:
    # At the first request: a program that only imports the engine gets no hook.
    os.register_at_fork(after_in_child=_forget_parent)


def _forget_parent() -> None:
    # A forked process has neither the senders of its parent nor the thread that has the lock.
    global _lock  # noqa: PLW0603 - nothing else can release it
    _lock = RLock()
    _pending.clear()


def _wake(waiters: dict[Waiter, asyncio.AbstractEventLoop], answer: Completion | None) -> None:
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        # The garbage collector ends the requests of a closed loop.
        here = None
    for waiter, loop in waiters.items():
        if loop is here:
            _wake_here(waiter, loop, answer)
        else:
            # No run waits in a closed loop.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(waiter.wake, answer)


def _wake_here(waiter: Waiter, loop: asyncio.AbstractEventLoop, answer: Completion | None) -> None:
    # As in another loop: the exception of one waiter reaches neither the sender nor the other waiters.
    try:
        waiter.wake(answer)
    except Exception as error:
        loop.call_exception_handler({"message": "a request failed to take its answer", "exception": error})
