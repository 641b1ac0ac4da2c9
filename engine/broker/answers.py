"""The answers of a run that need no request: from its cache or from another run."""

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
    """What a run finds instead of asking.

    Attributes:
        is_on: whether answers are kept.
        keeps_sampled: whether sampled ones are.
        is_charged: whether answers of other runs cost.
        writing: the task that writes.
    """

    def __init__(
        self, cache: ResponseCache | Literal["run"] | None, *, sampled: bool = False, charged: bool = False
    ) -> None:
        self.is_on = cache is not None
        self.keeps_sampled = sampled
        self.is_charged = charged
        self.writing: asyncio.Task[None] | None = None
        self._cache = cache if isinstance(cache, ResponseCache) else None
        self._place = self._cache.place if self._cache is not None else None
        # Without a cache file: all answers of the run. With one: those that are still to be written.
        self._answers: dict[bytes, Completion] = {}
        self._counted: set[bytes] = set()

    def identity(self, handler: ModelHandler) -> Mapping[str, Any] | None:
        """Return what the answers are kept under; None if they are not kept."""
        if not self.is_on or (handler.samples and not self.keeps_sampled):
            return None
        return handler.identity()

    def key(self, handler: ModelHandler, messages: Sequence[Message]) -> bytes | None:
        """Return the key of a conversation; None if its answer is not kept."""
        identity = self.identity(handler)
        return None if identity is None else cache_key(identity, messages)

    async def find(self, keys: Iterable[bytes]) -> dict[bytes, Completion]:
        """Return the answers that are there."""
        if self._place is None:
            return {key: self._answers[key] for key in keys if key in self._answers}
        # These first: an answer leaves them when it is in the cache.
        place, wanted = self._place, list(keys)
        found = {key: _unwritten[place, key] for key in wanted if (place, key) in _unwritten}
        if self._cache is None or not wanted:
            return found
        try:
            return {**await self._cache.get_many(wanted), **found}
        except CacheError:
            # The run goes on without its cache.
            self._cache = None
            return found

    def join(self, key: bytes, waiter: Waiter) -> PendingAnswer | None:
        """Wait with other runs; None if no other run shares this cache."""
        return None if self._place is None else join(self._place, key, waiter)

    def share(self, key: bytes | None) -> SharedRequest:
        """Return a request that joins equal ones of other runs."""
        shared = SharedRequest()
        if key is not None:
            shared.pending = self.join(key, shared)
        return shared

    def keep(self, key: bytes, completion: Completion, *, is_paid: bool = True) -> None:
        """Keep an answer, paid by this run or another."""
        # Of another run's answer the first use is counted when it is delivered.
        if is_paid:
            self._counted.add(key)
        if self._place is None:
            if is_kept(completion):
                self._answers.setdefault(key, replace(completion, retries=0, queued=0.0))
            return
        self._answers[key] = _unwritten[self._place, key] = completion
        if self.writing is None or self.writing.done():
            self.writing = asyncio.get_running_loop().create_task(self._write(self._place))

    def count(self, key: bytes) -> bool:
        """Whether this is the first use of another run's answer."""
        is_first = key not in self._counted
        self._counted.add(key)
        return is_first

    async def flushed(self) -> None:
        """Wait until all answers are written."""
        # What came during the write that is under way is in the one that follows it.
        for _ in range(2):
            if self.writing is not None:
                await asyncio.wait([self.writing])

    async def _write(self, place: str) -> None:
        written = dict(self._answers)
        if self._cache is not None:
            with suppress(CacheError):
                await self._cache.put_many(written)
        for key in written:
            self._answers.pop(key, None)
            _unwritten.pop((place, key), None)
        more = bool(self._answers)
        self.writing = asyncio.get_running_loop().create_task(self._write(place)) if more else None
