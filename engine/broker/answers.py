"""Answers of a run from its cache or from other runs."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, Protocol

from ...handlers import Completion, Message, ModelHandler
from ...handlers.base import without_thoughts
from ..errors import CacheError
from ..slices import SLICE, Steps, finish, in_slices
from .cache import ResponseCache, cache_key, is_kept, long_cache_key
from .pending import PendingAnswer, SharedRequest, Waiter, join

# Answers that are not in their cache yet, for all runs of the process that share it.
_unwritten: dict[tuple[str, bytes], Completion] = {}

# A transaction that fails loses no more; on a full disk, the transactions that fit are kept.
_AT_ONCE = 200

# Between attempts to write, while the cache fails.
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0
# Such an attempt waits so long for another process. Searches wait behind it.
_RETRY_SECONDS = 0.05

_MAX_NOTICES = 8


def lost_answers(count: int) -> str:
    """Say that answers are not in the cache."""
    return f"{count:,} paid {'answer is' if count == 1 else 'answers are'} not in the cache"


class CacheWatch(Protocol):
    """Takes what happens to the paid answers of a run."""

    def report_cache(self, unstored: int, error: str | None) -> None:
        """Take how many are not stored, and why; None: all are again."""
        ...

    def warn(self, text: str) -> None:
        """Take a line about answers that are lost."""
        ...


def _steps_to_key(
    identity: Mapping[str, Any], messages: Sequence[Message], sample: int, *, is_short: bool
) -> Steps[bytes]:
    if is_short:
        return cache_key(identity, messages, sample)
    return (yield from long_cache_key(identity, messages, sample))


class RunAnswers:
    """The answers that a run can reuse.

    Attributes:
        keeps_sampled: whether sampled answers are kept.
        is_charged: whether answers of other runs cost.
        fault: why the cache cannot be written now.
    """

    def __init__(
        self,
        cache: ResponseCache | Literal["run"] | None,
        *,
        sampled: bool = False,
        charged: bool = False,
        watch: CacheWatch | None = None,
    ) -> None:
        self.is_on = cache is not None
        # How often each sampled call was made, by its first key; None if a place does not count.
        self._places: Counter[bytes] | None = None
        if isinstance(cache, ResponseCache) and cache.numbers_samples:
            self._places = Counter()
        self.keeps_sampled = sampled or self._places is not None
        self.is_charged = charged
        self.fault: str | None = None
        self._watch = watch
        self._writing: asyncio.Task[None] | None = None
        self._notices = 0
        self._kept = self._stored = 0
        self._flushing: list[asyncio.Future[None]] = []
        self._ending = asyncio.Event()
        self._has_ended = False
        self._cache = cache if isinstance(cache, ResponseCache) else None
        self._location = self._cache.location if self._cache is not None else None
        # Without a cache file: all answers of the run. With one: those that are still to be written.
        self._answers: dict[bytes, Completion] = {}
        self._used: set[bytes] = set()
        # Answers of this run that are not in the cache, and those that are.
        self._paid: set[bytes] = set()
        self._paid_stored: set[bytes] = set()

    def identity(self, handler: ModelHandler) -> Mapping[str, Any] | None:
        """Return the handler's identity; None if its answers are not kept."""
        if not self.is_on or (handler.samples and not self.keeps_sampled):
            return None
        return handler.identity()

    @property
    def counts_places(self) -> bool:
        """Whether equal sampled calls have a number in the run."""
        return self._places is not None

    async def key(self, handler: ModelHandler, messages: Sequence[Message]) -> bytes | None:
        """Return the cache key of a conversation; None if it is not kept."""
        identity = self.identity(handler)
        if identity is None:
            return None
        is_short = sum(len(message["content"]) for message in messages) <= SLICE
        steps = self.steps_to_key(identity, messages, is_short=is_short, samples=handler.samples)
        return finish(steps) if is_short else await in_slices(steps)

    def steps_to_key(
        self,
        identity: Mapping[str, Any],
        messages: Sequence[Message],
        sample: int = 0,
        *,
        is_short: bool,
        samples: bool,
    ) -> Steps[bytes]:
        """Return the cache key of a call; ``sample`` is its place among the equal ones of its batch."""
        places = self._places if samples else None
        if places is not None:
            # The place among all of the run; in a batch they come one after another.
            first = yield from _steps_to_key(identity, messages, 0, is_short=is_short)
            sample = places[first]
            places[first] += 1
            if not sample:
                return first
        return (yield from _steps_to_key(identity, messages, sample, is_short=is_short))

    async def find(self, keys: Iterable[bytes]) -> dict[bytes, Completion]:
        """Return the known answers."""
        if self._location is None:
            return {key: self._answers[key] for key in keys if key in self._answers}
        # Before the cache: an answer leaves ``_unwritten`` only when the cache has it.
        location, wanted = self._location, list(keys)
        found = {key: _unwritten[location, key] for key in wanted if (location, key) in _unwritten}
        # A broken cache must not end a run. While it fails, nothing waits for it.
        if self._cache is None or not wanted or self.fault is not None:
            return found
        try:
            stored = await self._cache.get_many(wanted)
        except CacheError as error:
            self._report(str(error))
            return found
        # Earlier versions kept thoughts in the text.
        return {key: await without_thoughts(answer) for key, answer in stored.items()} | found

    def in_memory(self, key: bytes) -> Completion | None:
        """Return an answer that need not be searched: of this run, or one that is being written."""
        return self._answers.get(key) if self._location is None else _unwritten.get((self._location, key))

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
        if is_paid and is_kept(completion):
            self._paid.add(key)
        self._kept += 1
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write_all(self._location))

    def mark_used(self, key: bytes) -> bool:
        """Mark an answer of another run as used; return whether this is its first use."""
        is_first = key not in self._used
        self._used.add(key)
        return is_first

    @property
    def is_writing(self) -> bool:
        """Whether answers are not in the cache yet."""
        return self._writing is not None

    async def flushed(self) -> None:
        """Wait until the answers so far are in the cache, or the cache fails."""
        last = self._kept
        while self._stored < last and self._writing is not None and self.fault is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushing.append(waiter)
            await waiter

    async def finish(self) -> int:
        """Try once more to write what is left; return how many paid answers were lost."""
        self._ending.set()
        if self._writing is not None:
            # The task ends by itself, even if this one is cancelled.
            await asyncio.wait([self._writing])
        await self._check_stored()
        lost = len(self._paid)
        if lost and self._watch is not None and not self._has_ended:
            self._watch.warn(f"{lost_answers(lost)}: {self.fault or 'it was not written'}")
        self._has_ended = True
        return lost

    async def _check_stored(self) -> None:
        # A file that was overwritten takes what is written to it, and nobody can read it.
        stored, self._paid_stored = self._paid_stored, set()
        if self._cache is None or not stored:
            return
        try:
            await self._cache.check(next(iter(stored)))
        except CacheError as error:
            self._paid |= stored
            self._report(str(error))

    async def _write_all(self, location: str) -> None:
        waits = itertools.chain((_FIRST_WAIT * 2**n for n in range(5)), itertools.repeat(_LONGEST_WAIT))
        try:
            while self._answers:
                # The last attempt, if this is set before it begins.
                is_ending = self._ending.is_set()
                if await self._write_some(location, in_full_time=is_ending or self.fault is None):
                    continue
                if is_ending:
                    return
                wait = next(waits)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), wait)
        finally:
            self._writing = None
            self._end_flushes()
            for key in self._answers:
                _unwritten.pop((location, key), None)
            self._answers.clear()

    async def _write_some(self, location: str, *, in_full_time: bool) -> bool:
        """Write all answers of now; return whether all were written."""
        last, left = self._kept, list(self._answers.items())
        for start in range(0, len(left), _AT_ONCE):
            written = dict(left[start : start + _AT_ONCE])
            if self._cache is not None:
                try:
                    await self._cache.put_many(written, seconds=None if in_full_time else _RETRY_SECONDS)
                except CacheError as error:
                    self._report(str(error))
                    return False
            for key in written:
                self._answers.pop(key, None)
                if key in self._paid:
                    self._paid.remove(key)
                    self._paid_stored.add(key)
                _unwritten.pop((location, key), None)
        self._stored = last
        self._end_flushes()
        if self.fault is not None and not self._answers:
            self.fault = None
            self._notify(None)
        return True

    def _report(self, fault: str) -> None:
        is_new, self.fault = self.fault is None, fault
        self._end_flushes()
        if is_new:
            self._notify(fault)

    def _notify(self, fault: str | None) -> None:
        # A file that can be written and not be read would fail again and again.
        self._notices += 1
        if self._watch is not None and self._notices <= _MAX_NOTICES:
            self._watch.report_cache(len(self._paid), fault)

    def _end_flushes(self) -> None:
        waiting, self._flushing = self._flushing, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
