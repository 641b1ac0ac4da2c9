"""Answers of a run from its cache or from other runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from ...handlers import Completion, Message, ModelHandler
from ..errors import CacheError
from .cache import ResponseCache, cache_key, is_kept
from .pending import PendingAnswer, SharedRequest, Waiter, join

# Answers that are not in their cache yet, for all runs of the process that share it.
_unwritten: dict[tuple[str, bytes], Completion] = {}


class RunAnswers:
    """The answers that a run can reuse.

    Attributes:
        keeps_sampled: whether sampled answers are kept.
        is_charged: whether answers of other runs cost.
    """

    def __init__(
        self, cache: ResponseCache | Literal["run"] | None, *, sampled: bool = False, charged: bool = False
    ) -> None:
        self.is_on = cache is not None
        self.keeps_sampled = sampled
        self.is_charged = charged
        self.writing: asyncio.Task[None] | None = None
        self._cache = cache if isinstance(cache, ResponseCache) else None
        self._location = self._cache.location if self._cache is not None else None
        # Without a cache file: all answers of the run. With one: those that are still to be written.
        self._answers: dict[bytes, Completion] = {}
        self._used: set[bytes] = set()

    def identity(self, handler: ModelHandler) -> Mapping[str, Any] | None:
        """Return the handler's identity; None if its answers are not kept."""
        if not self.is_on or (handler.samples and not self.keeps_sampled):
            return None
        return handler.identity()

    def key(self, handler: ModelHandler, messages: Sequence[Message]) -> bytes | None:
        """Return the cache key of a conversation; None if it is not kept."""
        identity = self.identity(handler)
        return None if identity is None else cache_key(identity, messages)

    async def find(self, keys: Iterable[bytes]) -> dict[bytes, Completion]:
        """Return the known answers."""
        if self._location is None:
            return {key: self._answers[key] for key in keys if key in self._answers}
        # Before the cache: an answer leaves ``_unwritten`` only when the cache has it.
        location, wanted = self._location, list(keys)
        found = {key: _unwritten[location, key] for key in wanted if (location, key) in _unwritten}
        if self._cache is None or not wanted:
            return found
        try:
            return {**await self._cache.get_many(wanted), **found}
        except CacheError:
            # A broken cache must not end a run.
            self._cache = None
            return found

    def join(self, key: bytes, waiter: Waiter) -> PendingAnswer | None:
        """Wait with other runs; None without a shared cache."""
        return None if self._location is None else join(self._location, key, waiter)

    def share(self, key: bytes | None) -> SharedRequest:
        """Return a request that joins equal ones of other runs."""
        shared = SharedRequest()
        if key is not None:
            shared.pending = self.join(key, shared)
        return shared

    def keep(self, key: bytes, completion: Completion, *, is_paid: bool = True) -> None:
        """Keep an answer."""
        # The first use of another run's answer is counted at its delivery.
        if is_paid:
            self._used.add(key)
        if self._location is None:
            if is_kept(completion):
                # Retries and waiting belong to the call, not to the answer.
                self._answers.setdefault(key, replace(completion, retries=0, queued=0.0))
            return
        self._answers[key] = _unwritten[self._location, key] = completion
        if self.writing is None or self.writing.done():
            self.writing = asyncio.get_running_loop().create_task(self._write(self._location))

    def mark_used(self, key: bytes) -> bool:
        """Mark an answer of another run as used; return whether this is its first use."""
        is_first = key not in self._used
        self._used.add(key)
        return is_first

    async def flushed(self) -> None:
        """Wait until all answers are written."""
        # Twice: an answer that comes during a write is in the next one.
        for _ in range(2):
            if self.writing is not None:
                await asyncio.wait([self.writing])

    async def _write(self, location: str) -> None:
        written = dict(self._answers)
        if self._cache is not None:
            with suppress(CacheError):
                await self._cache.put_many(written)
        for key in written:
            self._answers.pop(key, None)
            _unwritten.pop((location, key), None)
        more = bool(self._answers)
        self.writing = asyncio.get_running_loop().create_task(self._write(location)) if more else None
