"""Worker calls: prompts from the code of one run."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ...handlers import Completion, ContextTooLong
from ..errors import LogError
from ..runlog.writer import CallFailure, CallStats, CallTimes, RunLogger
from ..sandbox import CallError, WorkerCall
from ..slices import SLICE, Steps, finish, in_slices
from .answers import RunAnswers
from .batch_result import BatchResult
from .budget import BudgetExceeded, Cost
from .cache import cache_key
from .call_errors import call_error, failure_kind, result_of
from .dispatch import Dispatcher
from .handler_queue import Admission, CallTimeout
from .metered_model import MeteredModel
from .prompt_request import PromptRequest
from .worker_health import WorkerHealth

T = TypeVar("T")

# Equal prompts that get their answer at once.
_DELIVERED_AT_ONCE = 16

# Calls that are resolved at once: a flood must leave time of the event loop to others.
_RESOLVED_AT_ONCE = 4


class WorkerCalls:
    """Answers the worker calls of one run."""

    def __init__(
        self,
        model: MeteredModel,
        log: RunLogger,
        on_change: Callable[[], None] | None = None,
        *,
        health: WorkerHealth,
        seconds: float | None = None,
    ) -> None:
        """Use the running event loop.

        Args:
            on_change: called when a call begins or ends.
            health: counts the prompts. A dead worker is asked nothing more.
            seconds: deadline of a call.
        """
        self.model = model
        self.health = health
        self._log = log if log.is_on else None
        self._on_change = on_change
        self._seconds = seconds
        self._answers: RunAnswers = model.answers
        self._loop = asyncio.get_running_loop()
        # Work that goes on after the call that began it.
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue = Dispatcher.current().queue(model.handler)
        self._resolving = asyncio.Semaphore(_RESOLVED_AT_ONCE)
        self._originals: dict[bytes, PromptRequest] = {}
        self._parked = 0

    @property
    def queued(self) -> int:
        """Prompts that wait for the model."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Prompts that this run, or another for it, has sent."""
        return self._queue.running + self._parked

    async def answer(self, call: WorkerCall) -> Sequence[str | CallError]:
        """Answer the prompts of a call in order."""
        batch = BatchResult(call)
        requests: list[PromptRequest] = []
        try:
            async with self._resolving:
                await _work(batch, self._make_requests(batch, requests))
                unanswered = await self._find_or_join(requests) if self._answers.is_on else requests
                await self._set_costs_and_queue(unanswered)
            if self._on_change is not None:
                self._on_change()
            results = await batch.results()
            self.health.end_call(frozenset(batch.failures))
            # Before code sees an answer, the cache has it: after a kill it is not paid again.
            if self._answers.is_writing:
                await self._answers.flushed()
            return results
        finally:
            if batch.missing:
                self._cancel_call(requests)
            if self._on_change is not None:
                self._on_change()

    def _make_requests(self, batch: BatchResult, requests: list[PromptRequest]) -> Steps[None]:
        for index, prompt in enumerate(batch.call.prompts):
            requests.append(
                PromptRequest(
                    self._seconds, is_conditional=False, prompt=prompt, calls=self, batch=batch, index=index
                )
            )
            yield

    async def _find_or_join(self, requests: list[PromptRequest]) -> list[PromptRequest]:
        batch = requests[0].batch
        identity = self._answers.identity(self.model.handler)
        if identity is None:
            return requests
        keys = await _work(batch, self._join(identity, requests))
        found = await self._answers.find(keys.values())
        return await _work(batch, self._use_found(keys, found))

    def _join(
        self, identity: Mapping[str, Any], requests: list[PromptRequest]
    ) -> Steps[dict[PromptRequest, bytes]]:
        samples = self.model.handler.samples
        copies = Counter[str]()
        keys: dict[PromptRequest, bytes] = {}
        for request in requests:
            copy = 0
            # A model that samples gives equal prompts of a batch different answers.
            if samples:
                copy = copies[request.prompt]
                copies[request.prompt] += 1
            is_short = len(request.prompt) <= SLICE
            if is_short and not self._answers.counts_places:
                key = cache_key(identity, request.conversation(), copy)
            else:
                key = yield from self._answers.steps_to_key(
                    identity, request.conversation(), copy, is_short=is_short, samples=samples
                )
            keys[request] = request.key = key
            # Before the search: another run's answer may come meanwhile.
            request.pending = self._answers.join(key, request)
            request.is_conditional = request.pending is not None
            yield
        return keys

    def _use_found(
        self, keys: Mapping[PromptRequest, bytes], found: Mapping[bytes, Completion]
    ) -> Steps[list[PromptRequest]]:
        rest: list[PromptRequest] = []
        for request, key in keys.items():
            yield
            if request.is_answered:
                continue
            # The second: its original may have been answered since the search.
            answer = found.get(key) or self._answers.in_memory(key)
            if answer is None and key not in self._originals:
                self._originals[key] = request
                rest.append(request)
                continue
            if request.pending is not None:
                request.pending.leave(request)
                request.pending = None
            if answer is not None:
                self._deliver_cached(request, key, answer)
            else:
                self._originals[key].add_duplicate(request)
        return rest

    async def _set_costs_and_queue(self, requests: list[PromptRequest]) -> None:
        if self.model.is_limited or self.model.handler.window is not None:
            requests = await self._set_costs(requests)
        self._queue.put(requests)

    def _queue_for_others(self, requests: list[PromptRequest]) -> None:
        # The call was cancelled before it queued them, and other calls wait for their answers.
        unqueued = [
            request
            for request in requests
            if request.duplicates and request.queue is None and not request.has_slot and not request.is_parked
        ]
        if unqueued:
            self._start(self._set_costs_and_queue(unqueued))

    async def _set_costs(self, requests: list[PromptRequest]) -> list[PromptRequest]:
        costs = await self.model.max_costs([request.prompt for request in requests])
        return await _work(requests[0].batch, self._take_costs(requests, costs)) if requests else []

    def _take_costs(
        self, requests: list[PromptRequest], costs: Sequence[Cost | ContextTooLong | None]
    ) -> Steps[list[PromptRequest]]:
        rest: list[PromptRequest] = []
        for request, cost in zip(requests, costs, strict=True):
            yield
            if request.is_answered:
                continue
            if isinstance(cost, ContextTooLong):
                self._fail(request, cost)
                continue
            request.cost = cost
            request.is_conditional |= cost is not None
            rest.append(request)
        return rest

    def admit(self, request: PromptRequest) -> Admission:
        """Reserve the cost of a request, or let it wait for another run."""
        if self.health.is_dead and self.health.failure is not None:
            self._fail(request, self.health.failure)
            return "not_here"
        pending = request.pending
        # First, because another run's answer takes nothing from the budget.
        if pending is not None and pending.is_sent_by_other(request):
            return self._park(request)
        if request.cost is not None:
            try:
                request.reservation = self.model.budget.reserve(request.cost)
            except BudgetExceeded as exceeded:
                if not exceeded.for_good:
                    self.model.budget.call_when_freed(self._queue.retry)
                    return "later"
                self._fail(request, exceeded)
                return "not_here"
        if pending is not None and not pending.claim(request):
            request.release()
            return self._park(request)
        return "now"

    def _park(self, request: PromptRequest) -> Admission:
        # ``wake`` follows when the sender has an answer, fails or is cancelled.
        self._parked += 1
        request.is_parked = True
        if request.seconds is not None:
            loop = asyncio.get_running_loop()
            request.timer = loop.call_later(request.seconds, self._end_parked, request)
        return "not_here"

    def _end_parked(self, request: PromptRequest) -> None:
        self._unpark(request)
        self._fail(request, CallTimeout(f"no answer within {request.seconds:g} s"))

    def _unpark(self, request: PromptRequest) -> None:
        self._parked -= 1
        request.is_parked = False
        if request.timer is not None:
            request.timer.cancel()
            request.timer = None

    def wake(self, request: PromptRequest, answer: Completion | None) -> None:
        """Take another run's answer; None: queue the request again."""
        # The request has ended, or was sent by this run.
        if request.pending is None or request.has_slot:
            return
        was_parked = request.is_parked
        if was_parked:
            self._unpark(request)
        if answer is None:
            if was_parked:
                self._queue.put([request])
            return
        key = request.key
        assert key is not None, "only a request with a key joins others"
        request.is_answered = True
        self._queue.cancel([request])
        self._answers.keep(key, answer, is_paid=False)
        requests = [request, *self._take_duplicates(request)]
        self._deliver_to(requests, self._deliver_each(requests, key, answer))

    def settle(self, request: PromptRequest, answer: Completion | Exception) -> None:
        """Count an ended request and deliver its result."""
        if not isinstance(answer, Completion):
            request.release()
            self._fail(request, answer)
            return
        assert request.started is not None, "it was sent"
        stats = self.model.count(answer, request.queued, request.started)
        if request.reservation is not None:
            request.reservation.settle(stats.usage, stats.cost_usd)
        if request.key is None:
            self._deliver(request, self._result(answer), stats, answer)
            return
        self._answers.keep(request.key, answer)
        self._deliver(request, self._result(answer), stats, answer)
        if request.pending is not None:
            request.pending.resolve(request, answer)
        duplicates = self._take_duplicates(request)
        if duplicates:
            self._deliver_to(duplicates, self._deliver_each(duplicates, request.key, answer))

    def _fail(self, request: PromptRequest, error: Exception) -> None:
        if request.pending is not None:
            request.pending.leave(request, failed=True)
        requests = [request, *self._take_duplicates(request)]
        self._deliver_to(requests, self._fail_each(requests, error))

    def _deliver_to(self, requests: Sequence[PromptRequest], steps: Steps[None]) -> None:
        # Equal prompts may be thousands. The garbage collector ends requests of a closed loop.
        if len(requests) <= _DELIVERED_AT_ONCE or not self._loop.is_running():
            finish(steps)
        else:
            self._start(in_slices(steps))

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _deliver_each(self, requests: Sequence[PromptRequest], key: bytes, answer: Completion) -> Steps[None]:
        for request in requests:
            # A duplicate may have been cancelled meanwhile.
            if request.is_wanted or request.original is None:
                self._deliver_cached(request, key, answer)
            yield

    def _fail_each(self, requests: Sequence[PromptRequest], error: Exception) -> Steps[None]:
        failure = call_error(error)
        for request in requests:
            if request.is_wanted or request.original is None:
                times = CallTimes(request.queued, request.started, done=time.monotonic())
                stats = CallStats(retries=None, times=times)
                self._deliver(request, failure, stats, None, error)
            yield

    def _count_failure(self, request: PromptRequest, told: CallError, error: Exception | None) -> None:
        kind = failure_kind(error, told)
        self.health.add_failure(error, kind)
        request.batch.failures.add(kind)
        self.health.check_prompts()
        if self.health.is_dead:
            self._queue.admit_each()

    def _deliver_cached(self, request: PromptRequest, key: bytes, answer: Completion) -> None:
        completion, stats = self.model.count_cached(key, answer, worker_calls=1)
        stats = stats._replace(times=stats.times._replace(queued=request.queued))
        self._deliver(request, self._result(answer), stats, completion)

    def _deliver(
        self,
        request: PromptRequest,
        result: str | CallError,
        stats: CallStats,
        completion: Completion | None,
        error: Exception | None = None,
    ) -> None:
        if isinstance(result, str):
            self.health.add_answer(cached=stats.cached)
        else:
            self._count_failure(request, result, error)
        if self._log is not None:
            message = None if error is None else f"{type(error).__name__}: {error}"
            failure = CallFailure(result, message) if isinstance(result, CallError) else None
            try:
                written = self._log.worker(
                    self.model.handler.model, stats, request.worker_prompt(), completion, failure
                )
            # A log that cannot be written ends the call, and with it the run.
            except LogError as failed:
                request.batch.fail(failed)
                return
            if written is not None:
                # A long text is still being written. The guest gets the answer when the log has it.
                written.add_done_callback(partial(request.put_written, result))
                return
        request.batch.put(request.index, result)

    def _result(self, answer: Completion) -> str | CallError:
        return result_of(answer, self.model.handler.max_tokens)

    def _take_duplicates(self, request: PromptRequest) -> list[PromptRequest]:
        request.pending = None
        if request.key is not None and self._originals.get(request.key) is request:
            del self._originals[request.key]
        duplicates, request.duplicates = list(request.duplicates or ()), None
        return duplicates

    def _cancel_call(self, requests: list[PromptRequest]) -> None:
        unwanted: list[PromptRequest] = []
        for request in requests:
            request.is_wanted = False
            original = request.original or request
            if original.duplicates is not None:
                original.duplicates.pop(request, None)
            # A request with duplicates goes on for them.
            if not original.is_wanted and not original.duplicates:
                unwanted.append(original)
        self._queue_for_others(requests)
        left = [(request, request.pending) for request in unwanted]
        for request in unwanted:
            if request.is_parked:
                self._unpark(request)
            self._take_duplicates(request)
        self._queue.cancel(unwanted)
        for request, pending in left:
            request.release()
            if pending is not None:
                pending.leave(request)


async def _work(batch: BatchResult, steps: Steps[T]) -> T:
    return finish(steps) if batch.is_short else await in_slices(steps)
