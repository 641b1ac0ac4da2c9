"""The model broker: a run's calls, under its budget and from its cache, onto models that all runs share.

A worker call of the sandbox becomes a request per prompt. What the cache holds is answered, equal requests under
way are joined, what cannot fit the window is refused unpaid, and the rest is queued (``dispatch.py``). A request
is reserved from the budget in the moment in which it could go, and settled when it has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from anyio import to_thread

from ...handlers import (
    Completion,
    ContextTooLong,
    HandlerError,
    Message,
    ModelHandler,
    Price,
    Rejected,
    Unavailable,
    Usage,
)
from ..errors import CacheError, LogError, TaskError
from ..events import Metrics
from ..result import CallTotals
from ..runlog.writer import CallFailure, CallStats, CallTimes, RunLogger, WorkerPrompt
from ..sandbox import CallError, WorkerCall
from .budget import Budget, BudgetExceeded, Cost, Reservation
from .cache import ResponseCache, cache_key
from .dispatch import Admission, CallTimeout, Dispatcher, Request
from .prices import Rate, price_of, window_of
from .tokens import fits, most_answer, most_tokens, most_usage

_NEAR = 0.9
"""This part of a window may be used: the tables of windows round, and so does the guess of tokens."""

_IN_PASSING = 16_384
"""Characters whose tokens may be counted in the event loop; a tokenizer takes some 20 ms for them."""

_AT_ONCE = 4
"""Calls that are looked at together, before their prompts are queued. Of thousands that come at once the event loop would
otherwise see to all, and to nobody else meanwhile.
"""

_TOKENS_A_CHARACTER = 0.4
"""Before the first answer tells: code and numbers, the worst of what supervisors read, have about so many."""

_REFUSED = CallError("refused", "the worker refused to answer")


@dataclass(frozen=True, slots=True)
class CallRules:
    """How the calls of a run are treated.

    Attributes:
        cache: where finished answers are kept; None keeps none.
        cache_sampled: whether answers that were drawn at random are kept, too. Equal prompts of one batch then
            have an answer each.
        call_seconds: a worker call's deadline, from the moment it goes to its model.
        cache_counts: whether an answer that another run paid for takes from the budget what it took there. A run
            that was interrupted is then begun again as it was: its supervisor is told of the same budget.
    """

    cache: ResponseCache | None = None
    cache_sampled: bool = False
    call_seconds: float | None = None
    cache_counts: bool = False


class Model:
    """One of a run's two models.

    Attributes:
        rate: what its tokens cost; None where nobody knows.
        window: in tokens, to plan with; None where nobody knows.
        cost_usd: dollars that were paid; None once something of unknown price is among it.
        cached: answers that cost nothing.
    """

    def __init__(self, handler: ModelHandler) -> None:
        self.handler = handler
        self.rate: Rate | None = handler.price
        self.window = handler.window
        self._input_tokens, self._output_tokens, self._calls = 0, 0, 0
        self.cost_usd: float | None = 0.0
        self.cached, self._retries = 0, 0
        self._earlier = Usage()
        self._earlier_cost: float | None = 0.0
        self._queue_seconds, self._model_seconds = 0.0, 0.0

    @property
    def usage(self) -> Usage:
        """Tokens and requests that were paid for."""
        return Usage(self._input_tokens, self._output_tokens, self._calls)

    @property
    def totals(self) -> CallTotals:
        """What its calls took besides."""
        return CallTotals(
            self.cost_usd, self.cached, self._retries, self._queue_seconds, self._model_seconds,
            self._earlier, self._earlier_cost,
        )  # fmt: skip

    def price(self, usage: Usage) -> float | None:
        """Dollars; None where the price is unknown."""
        return None if self.rate is None else self.rate.of(usage)

    def count(
        self, completion: Completion, queued_at: float, started: float, first_token: float | None = None
    ) -> CallStats:
        """Count a call that was paid for and has just ended. Monotonic times: taken, given to the handler, first text."""
        usage, cost, done = completion.usage, self.price(completion.usage), time.monotonic()
        sent = min(done, started + completion.queued)
        queued, worked = started - queued_at + completion.queued, done - sent
        self._input_tokens += usage.input_tokens
        self._output_tokens += usage.output_tokens
        self._calls += usage.calls
        self.cost_usd = _sum(self.cost_usd, cost)
        self._retries += completion.retries
        self._queue_seconds += queued
        self._model_seconds += worked
        times = CallTimes(queued_at, sent, first_token, done)
        return CallStats(usage, cost, queued, worked, completion.retries, times=times)

    def hit(self, completion: Completion, *, earlier: bool = False) -> tuple[Completion, CallStats]:
        """Count an answer that costs nothing, since it was paid for in this run, or ``earlier``, in another."""
        self.cached += 1
        if earlier:
            self._earlier += completion.usage
            self._earlier_cost = _sum(self._earlier_cost, self.price(completion.usage))
        times = CallTimes(done=time.monotonic())
        return replace(completion, usage=Usage()), CallStats(cached=True, times=times)


class _Nobody(ModelHandler):
    """The worker of a run that has none: the sandbox itself answers for it, and it is not asked."""

    model = ""
    price = Price(0, 0)

    def chat(self, messages: Sequence[Message]) -> Completion:
        raise Rejected("this run has no worker")


class Broker:
    """Answers the calls of one run. What it tells a guest of a failure is its kind, never the model's or host's words."""

    def __init__(
        self,
        supervisor: ModelHandler,
        worker: ModelHandler | None,
        log: RunLogger,
        on_metrics: Callable[[Metrics], None],
        *,
        budget: Budget | None = None,
        rules: CallRules | None = None,
    ) -> None:
        self.budget = budget or Budget()
        self.supervisor = Model(supervisor)
        self.worker = Model(worker or _Nobody())
        self._log = log
        self._on_metrics = on_metrics
        self._is_limited = self.budget.limits("max_worker_calls", "max_tokens", "max_cost_usd")
        self._rules = rules or CallRules()
        self._store = None if self._rules.cache is None else _Store(self._rules.cache)
        self._shared: dict[bytes, _Ask] = {}
        self._own: set[bytes] = set()
        self._entrance = asyncio.Semaphore(_AT_ONCE)
        self._done = 0
        self._failed = 0
        self._conversation: tuple[list[Message], int] = ([], 0)
        self._kept: tuple[Cost, Reservation] | None = None

    async def __aenter__(self) -> Broker:
        """Look the prices up; the queues belong to the running event loop.

        Raises:
            TaskError: dollars are limited, and what a model costs is not known.
        """
        self._queue = Dispatcher.here().queue(self.worker.handler)
        self.supervisor.window = await to_thread.run_sync(window_of, self.supervisor.handler)
        for model in (self.supervisor, self.worker):
            if model.rate is None:
                model.rate = await to_thread.run_sync(price_of, model.handler)
            if model.rate is None and self.budget.limits("max_cost_usd"):
                raise TaskError(
                    f"max_cost_usd: nobody knows what {model.handler.model} costs; say it in its `price`"
                )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is not None:
            await self._store.flushed()

    @property
    def cost_usd(self) -> float | None:
        """Dollars spent; None where a price is unknown."""
        return _sum(self.supervisor.cost_usd, self.worker.cost_usd)

    def metrics(self) -> Metrics:
        """How things stand now."""
        return Metrics(
            queued=len(self._queue),
            in_flight=self._queue.running,
            done=self._done,
            failed=self._failed,
            cached=self.worker.cached,
            usage=self.worker.usage,
            cost_usd=self.cost_usd,
        )

    # The supervisor

    async def ask_supervisor(
        self, messages: Sequence[Message], on_text: Callable[[str], None], *, best_answer: bool = False
    ) -> tuple[Completion, CallStats]:
        """The supervisor's next message.

        Args:
            messages: the whole conversation.
            on_text: gets the text as it comes.
            best_answer: whether what ``keep_for_best_answer`` set aside is for this.

        Raises:
            BudgetExceeded: it does not fit in what is left.
            HandlerError: the model failed for good.
        """
        model = self.supervisor
        identity = self._identity(model)
        key = None if identity is None else cache_key(identity, messages)
        if key is not None and self._store is not None and (found := await self._store.find([key])):
            on_text(found[key].text)
            self._remember(messages, found[key])
            return self._hit(model, key, found[key], worker_calls=0)
        reservation = await self._supervisors_share(messages, best_answer=best_answer)
        with reservation or nullcontext():
            started = time.monotonic()
            first_token: float | None = None

            def note_first_token(text: str) -> None:
                nonlocal first_token
                first_token = first_token or time.monotonic()
                on_text(text)

            completion = await model.handler.chat_stream(messages, note_first_token)
            numbers = model.count(completion, started, started, first_token)
            if reservation is not None:
                reservation.settle(numbers.usage, numbers.cost_usd)
        self._queue.look_again()  # less may have been paid than was set aside
        self._remember(messages, completion)
        if key is not None and self._store is not None:
            self._own.add(key)
            self._store.keep(key, completion)
            await self._store.flushed()
        return completion, numbers

    def _remember(self, messages: Sequence[Message], completion: Completion) -> None:
        """How many tokens the conversation is so far."""
        if completion.usage.input_tokens:  # some endpoints do not say
            answer: Message = {"role": "assistant", "content": completion.text}
            spoken = completion.usage.input_tokens + completion.usage.output_tokens
            self._conversation = ([*messages, answer], spoken)

    def _hit(
        self, model: Model, key: bytes, completion: Completion, *, worker_calls: int
    ) -> tuple[Completion, CallStats]:
        """Count an answer from the cache: the first of its key, if this run did not pay for it, as another's."""
        earlier = key not in self._own
        self._own.add(key)
        if earlier and self._rules.cache_counts:
            self.budget.charge(self._cost(model, completion.usage, worker_calls=worker_calls))
        return model.hit(completion, earlier=earlier)

    def supervisor_has_room(self, messages: Sequence[Message]) -> bool:
        """Whether a turn with these messages stays clear of the end of the supervisor's window, as far as is known."""
        model = self.supervisor
        if model.window is None:
            return True
        tokens: float | None = model.handler.count_tokens(messages)
        if tokens is None:
            tokens = sum(len(message["content"]) for message in messages) * self._tokens_a_character()
        return tokens + most_answer(model.handler) < _NEAR * model.window

    def _tokens_a_character(self) -> float:
        """As it was in this conversation so far."""
        messages, tokens = self._conversation
        characters = sum(len(message["content"]) for message in messages)
        return tokens / characters if characters else _TOKENS_A_CHARACTER

    def keep_for_best_answer(self, messages: Sequence[Message]) -> None:
        """Set aside what a last answer to this conversation would take, in place of what was before.

        Raises:
            BudgetExceeded: it does not fit; what was set aside before stays.
        """
        if not self._is_limited:
            return
        before, self._kept = self._kept, None
        cost = self._supervisors_cost(messages)
        if before is not None:
            before[1].release()
        try:
            self._kept = cost, self.budget.keep(cost)
        except BudgetExceeded:
            if before is not None:
                self._kept = before[0], self.budget.keep(before[0])
            raise

    async def _supervisors_share(
        self, messages: Sequence[Message], *, best_answer: bool
    ) -> Reservation | None:
        if not self._is_limited:
            return None
        if best_answer and self._kept is not None:
            (_, reservation), self._kept = self._kept, None
            return reservation
        return await self.budget.acquire(self._supervisors_cost(messages))

    def _supervisors_cost(self, messages: Sequence[Message]) -> Cost:
        """At most so much: of the part of the conversation that it has seen, the tokens are known."""
        handler = self.supervisor.handler
        seen, known = self._conversation
        if list(messages[: len(seen)]) != seen:  # some of it was left out since
            seen, known = [], 0
        tokens = known + most_tokens(handler, messages[len(seen) :])
        return self._cost(self.supervisor, Usage(tokens, most_answer(handler), 1), worker_calls=0)

    # The worker

    async def answer(self, call: WorkerCall) -> Sequence[str | CallError]:
        """Ask the worker each prompt of a call; the results in order. Errors take their places, and stop nothing.

        Cancelled, it cancels its requests: what waits is not sent, what is under way is broken off and not paid.
        """
        batch = _Batch(call)
        seconds = self._rules.call_seconds
        asks = [_Ask(self, batch, index, prompt, seconds) for index, prompt in enumerate(call.prompts)]
        try:
            async with self._entrance:
                to_ask = await self._spare(asks)
                await self._weigh(to_ask)
                self._queue.put([ask for ask in to_ask if not self._refuse_too_long(ask)])
            self._on_metrics(self.metrics())
            results = await batch.results()
            if self._store is not None:
                await self._store.flushed()  # what code has seen is not paid for again, even after a kill
            return results
        finally:
            if not batch.is_complete:
                self._abandon(asks)
            self._on_metrics(self.metrics())

    async def _spare(self, asks: list[_Ask]) -> list[_Ask]:
        """Answer what need not be asked, from the cache or together with an equal request; the rest, in order."""
        identity = self._identity(self.worker)
        if self._store is None or identity is None:
            return asks
        copies = Counter[str]()
        keys: dict[_Ask, bytes] = {}
        for ask in asks:
            copy = copies[ask.prompt] if self.worker.handler.samples else 0
            keys[ask] = ask.key = cache_key(identity, ask.conversation(), copy)
            copies[ask.prompt] += 1
        found = await self._store.find(keys.values())
        rest: list[_Ask] = []
        for ask, key in keys.items():
            if key in found:
                completion, numbers = self._hit(self.worker, key, found[key], worker_calls=1)
                self._deliver(ask, completion.text, numbers, completion)
            elif key in self._shared:
                self._shared[key].lead(ask)
            else:
                self._shared[key] = ask
                rest.append(ask)
        return rest

    async def _weigh(self, asks: list[_Ask]) -> None:
        """Count what the requests need to be judged by: in a thread, where that takes long."""
        handler, is_limited = self.worker.handler, self._is_limited
        if handler.window is None and not is_limited:
            return

        def count() -> None:
            for ask in asks:
                if handler.window is not None:
                    ask.is_too_long = not fits(handler, ask.conversation(), handler.window)
                if is_limited and not ask.is_too_long:
                    ask.cost = self._cost(
                        self.worker, most_usage(handler, ask.conversation()), worker_calls=1
                    )

        if sum(len(ask.prompt) for ask in asks) <= _IN_PASSING:
            count()
        else:
            await to_thread.run_sync(count, abandon_on_cancel=True)

    def _refuse_too_long(self, ask: _Ask) -> bool:
        if ask.is_too_long:
            window = self.worker.handler.window
            self._fail(ask, ContextTooLong(f"the prompt is longer than the window of {window} tokens"))
        return ask.is_too_long

    def admit(self, ask: _Ask) -> Admission:
        """Set aside what a request takes at most, now that there is room for it."""
        if ask.cost is None:
            return "now"
        try:
            ask.reservation = self.budget.reserve(ask.cost)
        except BudgetExceeded as exceeded:
            if not exceeded.for_good:
                return "later"
            self._fail(ask, exceeded)
            return "never"
        return "now"

    def settle(self, ask: _Ask, answer: Completion | Exception) -> None:
        """A request has ended."""
        if not isinstance(answer, Completion):
            ask.release()
            self._fail(ask, answer)
            return
        assert ask.started is not None
        numbers = self.worker.count(answer, ask.queued, ask.started)
        if ask.reservation is not None:
            ask.reservation.settle(numbers.usage, numbers.cost_usd)
        if ask.key is not None and self._store is not None:
            self._own.add(ask.key)
            self._store.keep(ask.key, answer)
        result = _REFUSED if answer.finish_reason == "refusal" else answer.text
        self._deliver(ask, result, numbers, answer)
        if ask.key is not None:
            for joined in self._part(ask):
                completion, none = self.worker.hit(answer)
                self._deliver(joined, result, none, completion)

    def _fail(self, ask: _Ask, error: Exception) -> None:
        """Log why there is no answer, and tell the guest what kind of reason it is."""
        failure = _call_error(error)
        for each in (ask, *self._part(ask)):
            times = CallTimes(each.queued, each.started, done=time.monotonic())
            stats = CallStats(retries=None, times=times)
            self._deliver(each, failure, stats, None, f"{type(error).__name__}: {error}")

    def _deliver(
        self,
        ask: _Ask,
        result: str | CallError,
        numbers: CallStats,
        completion: Completion | None,
        message: str = "",
    ) -> None:
        """Log a result and hand it over. A log that cannot be written ends the call, and with it the run."""
        if self._log.is_on:
            failure = CallFailure(result, message or None) if isinstance(result, CallError) else None
            try:
                self._log.worker(self.worker.handler.model, numbers, ask.place(), completion, failure)
            except LogError as error:
                ask.batch.fail(error)
                return
        self._done += 1
        self._failed += not isinstance(result, str)
        ask.batch.put(ask.index, result)

    def _part(self, ask: _Ask) -> list[_Ask]:
        """Those that joined a request which has ended."""
        if ask.key is not None and self._shared.get(ask.key) is ask:
            del self._shared[ask.key]
        joined, ask.joined = list(ask.joined or ()), None
        return joined

    def _abandon(self, asks: list[_Ask]) -> None:
        """Their caller is gone. One that others have joined goes on for them."""
        unwanted: list[_Ask] = []
        for ask in asks:
            ask.wanted = False
            leader = ask.leader or ask
            if leader.joined is not None:
                leader.joined.pop(ask, None)
            if not leader.wanted and not leader.joined:
                unwanted.append(leader)
        for ask in unwanted:
            self._part(ask)
        self._queue.cancel(unwanted)
        for ask in unwanted:
            ask.release()
        self._queue.look_again()

    # Both

    def _cost(self, model: Model, usage: Usage, *, worker_calls: int) -> Cost:
        return Cost(worker_calls, usage.input_tokens + usage.output_tokens, model.price(usage))

    def _identity(self, model: Model) -> Mapping[str, Any] | None:
        """What its answers are kept under; None where they are not kept."""
        if self._store is None or (model.handler.samples and not self._rules.cache_sampled):
            return None
        return model.handler.identity()


class _Ask(Request):
    """One prompt of a call on its way."""

    __slots__ = (
        "_broker", "batch", "cost", "index", "is_too_long", "joined", "key", "leader", "prompt", "reservation",
        "wanted",
    )  # fmt: skip

    def __init__(self, broker: Broker, batch: _Batch, index: int, prompt: str, seconds: float | None) -> None:
        super().__init__(seconds)
        self.prompt = prompt
        self._broker = broker
        self.batch = batch
        self.index = index
        self.key: bytes | None = None
        self.is_too_long = False
        self.cost: Cost | None = None
        self.reservation: Reservation | None = None
        self.wanted = True
        self.leader: _Ask | None = None
        self.joined: dict[_Ask, None] | None = None

    def conversation(self) -> Sequence[Message]:
        """See ``Request.conversation``."""
        return [{"role": "user", "content": self.prompt}]

    def admit(self) -> Admission:
        """See ``Request.admit``."""
        return self._broker.admit(self)

    def finish(self, answer: Completion | Exception) -> None:
        """See ``Request.finish``."""
        self._broker.settle(self, answer)

    def lead(self, other: _Ask) -> None:
        """Another one, for the same, takes its answer from this one's."""
        other.leader = self
        self.joined = self.joined or {}
        self.joined[other] = None

    def release(self) -> None:
        """Nothing was paid for it."""
        if self.reservation is not None:
            self.reservation.release()

    def place(self) -> WorkerPrompt:
        """Return which prompt it is, for the log."""
        call = self.batch.call
        return WorkerPrompt(call.cell, call.call, self.index, self.prompt)


class _Batch:
    """The results of a call, put in one by one."""

    def __init__(self, call: WorkerCall) -> None:
        self.call = call
        self._results: list[str | CallError | None] = [None] * len(call.prompts)
        self._missing = len(call.prompts)
        self._error: LogError | None = None
        self._complete = asyncio.Event()

    @property
    def is_complete(self) -> bool:
        """Whether each prompt has its result."""
        return not self._missing

    def put(self, index: int, result: str | CallError) -> None:
        """A prompt has its result."""
        self._results[index] = result
        self._missing -= 1
        if not self._missing:
            self._complete.set()

    def fail(self, error: LogError) -> None:
        """A result could not be logged: there will be no more of them."""
        self._error = error
        self._complete.set()

    async def results(self) -> list[str | CallError]:
        """All of them, once they are there.

        Raises:
            LogError: a result could not be logged.
        """
        if self._missing:
            await self._complete.wait()
        if self._error is not None:
            raise self._error
        return [result for result in self._results if result is not None]


class _Store:
    """A cache that is written several answers at once. Where it fails, the run goes on without."""

    def __init__(self, cache: ResponseCache) -> None:
        self._cache: ResponseCache | None = cache
        self._new: dict[bytes, Completion] = {}
        self._task: asyncio.Task[None] | None = None

    async def find(self, keys: Iterable[bytes]) -> dict[bytes, Completion]:
        """The answers that are there."""
        wanted = list(keys)
        if self._cache is None or not wanted:
            return {}
        new = {key: self._new[key] for key in wanted if key in self._new}
        try:
            return {**await self._cache.get_many(wanted), **new}
        except CacheError:
            self._cache = None
            return new

    def keep(self, key: bytes, completion: Completion) -> None:
        """Store an answer soon."""
        self._new[key] = completion
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def flushed(self) -> None:
        """Wait until everything that was kept so far is stored: by the write under way, or by the one that follows."""
        for _ in range(2):
            if self._task is not None:
                await asyncio.wait([self._task])

    async def _write(self) -> None:
        written = dict(self._new)
        if self._cache is not None:
            with suppress(CacheError):
                await self._cache.put_many(written)
        for key in written:
            self._new.pop(key, None)
        if self._new:
            self._task = asyncio.get_running_loop().create_task(self._write())


def _sum(dollars: float | None, more: float | None) -> float | None:
    return None if dollars is None or more is None else dollars + more


def _call_error(error: Exception) -> CallError:
    match error:
        case BudgetExceeded():
            return CallError("budget_exceeded", f"the run's {error.limit} is used up")
        case ContextTooLong():
            return CallError("too_long", "the prompt does not fit the worker's window")
        case CallTimeout():
            return CallError("timeout", "the worker did not answer in time")
        case HandlerError() if not isinstance(error, Unavailable):
            return CallError("refused", "the worker's endpoint refused the request")
        case _:
            return CallError("unavailable", "the worker could not be reached, or failed")
