"""A model with its price, budget, cached answers and counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

from anyio import to_thread

from ...handlers import (
    Completion,
    ContextTooLong,
    HandlerError,
    Message,
    ModelHandler,
    Price,
    Retry,
    Usage,
    call_chat_stream,
)
from ...handlers.retries import listening
from ..result import CallTotals
from ..runlog.writer import CallStats, CallTimes
from ..slices import Steps, finish, in_slices
from .answers import RunAnswers
from .budget import Budget, BudgetExceeded, Cost, Reservation
from .inner_calls import InnerCalls
from .pending import SharedRequest
from .prices import Rate, price_of, unknown_price, window_of
from .tokens import counts_tokens, fits, max_answer_tokens, max_prompt_tokens, max_usage

# The part of a window that may be used. Tables of windows round, and tokens are estimated.
_USABLE = 0.9

# Characters whose tokens may be counted in the event loop: a tokenizer takes about 20 ms for them.
_COUNTED_IN_LOOP = 16_384

_PROMPTS_AT_ONCE = 64

# Before the first answer, for code and stats: the densest text that supervisors read.
_TOKENS_PER_CHARACTER = 0.4


async def meter(
    handler: ModelHandler,
    budget: Budget,
    answers: RunAnswers,
    *,
    needs_window: bool = True,
    outer: InnerCalls | None = None,
    role: str = "",
    on_retry: Callable[[Retry], None] | None = None,
) -> MeteredModel:
    """Look up the price of a model and, if needed, its window. ``outer`` counts for the outer run.

    Raises:
        TaskError: dollars are limited and the price is unknown.
    """
    rate: Rate | None = handler.price
    if rate is None:
        rate = await to_thread.run_sync(price_of, handler)
    if rate is None and budget.limits("max_cost_usd"):
        raise unknown_price(handler.model)
    window = await to_thread.run_sync(window_of, handler) if needs_window else handler.window
    return MeteredModel(handler, budget, answers, rate, window, outer=outer, role=role, on_retry=on_retry)


@dataclass(frozen=True, slots=True)
class _MeasuredConversation:
    """A conversation with the tokens that its endpoint counted."""

    messages: list[Message]
    tokens: int


class MeteredModel:
    """One model of a run; unknown figures are None.

    Attributes:
        window: in tokens.
        role: what its errors name.
        on_retry: called when a request will be sent again.
        cached: answers that cost nothing.
    """

    def __init__(
        self,
        handler: ModelHandler,
        budget: Budget,
        answers: RunAnswers,
        rate: Rate | None = None,
        window: int | None = None,
        *,
        outer: InnerCalls | None = None,
        role: str = "",
        on_retry: Callable[[Retry], None] | None = None,
    ) -> None:
        self.handler = handler
        self.budget = budget
        self.answers = answers
        self.rate = rate
        self.window = window
        self._is_free = rate == Price(0, 0)
        self.is_limited = budget.reserves
        self._outer = outer
        self.role = role
        self.on_retry = on_retry or _ignore
        self._last_retry: Retry | None = None
        self.cost_usd: float | None = 0.0
        self.cached = 0
        self._input_tokens, self._output_tokens, self._calls, self._retries = 0, 0, 0, 0
        # What only some providers count: cached tokens and thoughts.
        self._details: Usage | None = None
        self._queue_seconds, self._model_seconds = 0.0, 0.0
        self._cached_usage = Usage()
        self._cached_cost: float | None = 0.0
        self._measured = _MeasuredConversation([], 0)
        self._best_answer: tuple[Cost, Reservation] | None = None

    @property
    def usage(self) -> Usage:
        """Paid tokens and requests."""
        own = Usage(self._input_tokens, self._output_tokens, self._calls)
        return own if self._details is None else own + self._details

    @property
    def totals(self) -> CallTotals:
        """Other figures of its calls."""
        return CallTotals(
            self.cost_usd, self.cached, self._retries, self._queue_seconds, self._model_seconds,
            self._cached_usage, self._cached_cost,
        )  # fmt: skip

    def cost(self, usage: Usage, *, worker_calls: int) -> Cost:
        """Return the budget cost of a call."""
        return Cost(worker_calls, usage.input_tokens + usage.output_tokens, self._price(usage))

    def count(
        self, completion: Completion, queued_at: float, started: float, first_token: float | None = None
    ) -> CallStats:
        """Count a paid call that ends now. Times are monotonic."""
        usage, done = completion.usage, time.monotonic()
        sent = min(done, started + completion.queued)
        queued, worked = started - queued_at + completion.queued, done - sent
        cost: float | None = 0.0
        if not self._is_free:
            cost = self._price(usage)
            self.cost_usd = add_dollars(self.cost_usd, cost)
        if self._outer is not None:
            self._outer.add(usage, cost)
        self._input_tokens += usage.input_tokens
        self._output_tokens += usage.output_tokens
        self._calls += usage.calls
        if usage.cache_read_tokens is not None or usage.reasoning_tokens:
            more = replace(usage, input_tokens=0, output_tokens=0, calls=0)
            self._details = more if self._details is None else self._details + more
        self._retries += completion.retries
        self._queue_seconds += queued
        self._model_seconds += worked
        # By position: names take twice as long, and every prompt comes through here.
        times = CallTimes(queued_at, sent, first_token, done)
        return CallStats(usage, cost, queued, worked, completion.retries, False, times)

    def count_cached(
        self, key: bytes, completion: Completion, *, worker_calls: int
    ) -> tuple[Completion, CallStats]:
        """Count a cached answer; return it without usage."""
        self.cached += 1
        # Another run paid for it.
        if self.answers.mark_used(key):
            self._cached_usage += completion.usage
            self._cached_cost = add_dollars(self._cached_cost, self._price(completion.usage))
            if self.answers.is_charged:
                self.budget.charge(self.cost(completion.usage, worker_calls=worker_calls))
        stats = CallStats(cached=True, times=CallTimes(done=time.monotonic()))
        return replace(completion, usage=Usage()), stats

    async def ask(
        self, messages: Sequence[Message], on_text: Callable[[str], None], *, best_answer: bool = False
    ) -> tuple[Completion, CallStats]:
        """Answer a conversation, from the cache if possible.

        Args:
            on_text: called with text as it comes.
            best_answer: use its reservation.

        Raises:
            BudgetExceeded: the call does not fit.
            HandlerError: the model failed for good.
        """
        key = await self.answers.key(self.handler, messages)
        if key is None:
            completion, stats = await self._send(messages, on_text, SharedRequest(), best_answer=best_answer)
            assert stats is not None, "no other run can send it"
            return completion, stats
        # Joined before the search: another run's answer may come meanwhile.
        shared = self.answers.share(key)
        stats = None
        try:
            found = (await self.answers.find([key])).get(key)
            if found is None:
                found, stats = await self._send(messages, on_text, shared, best_answer=best_answer)
                self.answers.keep(key, found, is_paid=stats is not None)
                shared.resolve(found)
        except BaseException as error:
            shared.leave(failed=isinstance(error, Exception))
            raise
        shared.leave(failed=False)
        await self.answers.flushed()
        if stats is not None:
            return found, stats
        on_text(found.text)
        self._measure(messages, found)
        return self.count_cached(key, found, worker_calls=0)

    async def _send(
        self,
        messages: Sequence[Message],
        on_text: Callable[[str], None],
        shared: SharedRequest,
        *,
        best_answer: bool,
    ) -> tuple[Completion, CallStats | None]:
        answer = await shared.other_answer()
        # Another run's answer takes nothing from the budget.
        if answer is not None:
            return answer, None
        reservation = await self._reserve(messages, best_answer=best_answer)
        with reservation or nullcontext():
            # Another run may have sent it while this one waited for its budget.
            while not shared.claim():
                answer = await shared.other_answer()
                if answer is not None:
                    return answer, None
            started = time.monotonic()
            first_token: float | None = None

            def note_first_token(text: str) -> None:
                nonlocal first_token
                first_token = first_token or time.monotonic()
                on_text(text)

            try:
                self._last_retry = None
                with listening(self._note_retry):
                    answer = await call_chat_stream(self.handler, messages, note_first_token)
            except HandlerError as error:
                error.role = self.role
                raise
            stats = self.count(answer, started, started, first_token)
            if reservation is not None:
                reservation.settle(stats.usage, stats.cost_usd)
        self._measure(messages, answer)
        return answer, stats

    def _note_retry(self, retry: Retry) -> None:
        self._last_retry = retry
        self.on_retry(retry)

    @property
    def trouble(self) -> str:
        """What the last request of the conversation met before it was sent again, in words; or nothing."""
        retry = self._last_retry
        return "" if retry is None else f"{retry.words}: the next attempt was {retry.seconds:.0f} s later"

    async def max_costs(self, prompts: Sequence[str]) -> list[Cost | ContextTooLong | None]:
        """Return each prompt's highest cost, or that it is too long."""
        counting = self._max_call_costs(prompts)
        if sum(map(len, prompts)) <= _COUNTED_IN_LOOP and len(prompts) <= _PROMPTS_AT_ONCE:
            return finish(counting)
        if counts_tokens(self.handler):
            return await to_thread.run_sync(finish, counting, abandon_on_cancel=True)
        return await in_slices(counting)

    def _max_call_costs(self, prompts: Sequence[str]) -> Steps[list[Cost | ContextTooLong | None]]:
        costs: list[Cost | ContextTooLong | None] = []
        for prompt in prompts:
            costs.append((yield from self._max_call_cost(prompt)))
            yield
        return costs

    def _max_call_cost(self, prompt: str) -> Steps[Cost | ContextTooLong | None]:
        handler = self.handler
        messages: list[Message] = [{"role": "user", "content": prompt}]
        if handler.window is not None and not (yield from fits(handler, messages, handler.window)):
            return ContextTooLong(f"the prompt is longer than the window of {handler.window} tokens")
        if not self.is_limited:
            return None
        return self.cost((yield from max_usage(handler, messages)), worker_calls=1)

    def has_room(self, messages: Sequence[Message]) -> bool:
        """Return whether the messages leave room in the window."""
        if self.window is None:
            return True
        tokens: float | None = self.handler.count_tokens(messages)
        if tokens is None:
            tokens = _characters(messages) * self._tokens_per_character()
        return tokens + max_answer_tokens(self.handler) < _USABLE * self.window

    async def reserve_best_answer(self, messages: Sequence[Message]) -> None:
        """Renew the reservation for a last answer.

        Raises:
            BudgetExceeded: it does not fit; the old one stays.
        """
        if not self.is_limited:
            return
        cost = await self._max_cost(messages)
        before, self._best_answer = self._best_answer, None
        if before is not None:
            before[1].release()
        try:
            self._best_answer = cost, self.budget.hold(cost)
        except BudgetExceeded:
            if before is not None:
                self._best_answer = before[0], self.budget.hold(before[0])
            raise

    async def _reserve(self, messages: Sequence[Message], *, best_answer: bool) -> Reservation | None:
        if not self.is_limited:
            return None
        if best_answer and self._best_answer is not None:
            (_, reservation), self._best_answer = self._best_answer, None
            return reservation
        return await self.budget.acquire(await self._max_cost(messages))

    async def _max_cost(self, messages: Sequence[Message]) -> Cost:
        measured = self._measured
        # Earlier messages may have been left out since.
        if list(messages[: len(measured.messages)]) != measured.messages:
            measured = _MeasuredConversation([], 0)
        more = messages[len(measured.messages) :]
        counting = max_prompt_tokens(self.handler, more)
        if _characters(more) <= _COUNTED_IN_LOOP:
            tokens = finish(counting)
        elif counts_tokens(self.handler):
            tokens = await to_thread.run_sync(finish, counting, abandon_on_cancel=True)
        else:
            tokens = await in_slices(counting)
        tokens += measured.tokens
        return self.cost(Usage(tokens, max_answer_tokens(self.handler), 1), worker_calls=0)

    def _measure(self, messages: Sequence[Message], completion: Completion) -> None:
        # Some endpoints report no usage.
        if completion.usage.input_tokens:
            answer: Message = {"role": "assistant", "content": completion.text}
            tokens = completion.usage.input_tokens + completion.usage.output_tokens
            self._measured = _MeasuredConversation([*messages, answer], tokens)

    def _tokens_per_character(self) -> float:
        characters = _characters(self._measured.messages)
        return self._measured.tokens / characters if characters else _TOKENS_PER_CHARACTER

    def _price(self, usage: Usage) -> float | None:
        if self._is_free:
            return 0.0
        return None if self.rate is None else self.rate.of(usage)


def add_dollars(dollars: float | None, more: float | None) -> float | None:
    """Add two sums; None is unknown."""
    return None if dollars is None or more is None else dollars + more


def _ignore(_: Retry) -> None:
    return None


def _characters(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)
