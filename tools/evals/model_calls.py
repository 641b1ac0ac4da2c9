"""Models that are asked without a loop: a judge, and the model of the direct strategy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

from ...engine.broker.answers import CacheWatch, RunAnswers
from ...engine.broker.budget import Budget, BudgetLimits
from ...engine.broker.cache import ResponseCache
from ...engine.broker.handler_queue import CallTimeout
from ...engine.broker.metered_model import MeteredModel, add_dollars, meter
from ...engine.result import CallTotals
from ...handlers import Completion, ContextTooLong, HandlerError, Message, ModelHandler, Usage
from .records import Tokens

# Shows a line to the user.
Note = Callable[[str], None]


# Calls that may pass, each after its own retries.
_FAILED_CALLS = 3


class JudgeHealth:
    """Decides whether a judge is dead for good: it has failed three times, and never answered."""

    def __init__(self) -> None:
        self._failed = 0
        self._has_answered = False

    @property
    def is_dead(self) -> bool:
        """Whether no call can be expected to succeed."""
        return not self._has_answered and self._failed >= _FAILED_CALLS

    def add(self, *, answered: bool) -> None:
        """Count a call."""
        self._has_answered |= answered
        self._failed += not answered


class Judge:
    """Asks a judge for one example, and counts its tokens."""

    def __init__(self, model: MeteredModel, seconds: float | None, health: JudgeHealth) -> None:
        self._model = model
        self._seconds = seconds
        self._health = health

    async def __call__(self, messages: Sequence[Message]) -> Completion:
        """Return the judge's reply.

        Raises:
            HandlerError: there is none.
        """
        try:
            async with asyncio.timeout(self._seconds):
                completion, _ = await self._model.ask(messages, ignore)
        except TimeoutError:
            self._health.add(answered=False)
            raise CallTimeout(f"the judge did not answer within {self._seconds} s") from None
        except HandlerError as error:
            self._health.add(answered=isinstance(error, ContextTooLong))
            raise
        self._health.add(answered=True)
        return completion

    async def store_answers(self) -> int:
        """Write the last answers into the cache; return how many paid ones it could not keep."""
        return await self._model.answers.finish()

    @property
    def tokens(self) -> Tokens:
        """The tokens and dollars so far."""
        return tokens_of(self._model.usage, self._model.totals)


class _Shown:
    """Shows what happens to the judge's answers, which have no log."""

    def __init__(self, note: Note) -> None:
        self._note = note

    def warn(self, text: str) -> None:
        self._note(text)

    def report_cache(self, unstored: int, error: str | None) -> None:
        if error is not None:
            self._note(f"the cache cannot be used for the judge: {error}")


@asynccontextmanager
async def open_judge(
    handler: ModelHandler,
    cache: ResponseCache | None,
    seconds: float | None,
    note: Note,
    health: JudgeHealth,
) -> AsyncGenerator[Judge]:
    """Open a judge for one example. ``health`` is of all examples."""
    async with metered_model(handler, cache, watch=_Shown(note), role="judge") as model:
        yield Judge(model, seconds, health)


@asynccontextmanager
async def metered_model(
    handler: ModelHandler,
    cache: ResponseCache | None,
    *,
    limits: BudgetLimits | None = None,
    cache_sampled: bool = True,
    watch: CacheWatch | None = None,
    role: str = "",
) -> AsyncGenerator[MeteredModel]:
    """Open a model with a budget of its own."""
    # Metered like the models of runs, so that prices, budgets and the cache are the same.
    answers = RunAnswers(cache, sampled=cache_sampled, charged=True, watch=watch)
    model = await meter(handler, Budget(limits), answers, role=role)
    try:
        yield model
    finally:
        # An answer that is not written yet would be paid for again.
        await answers.finish()


def tokens_of(usage: Usage, totals: CallTotals) -> Tokens:
    """Return the tokens and dollars of a model's calls, including those that an earlier run paid for."""
    # Then a resumed run has the counts of one that was not interrupted.
    usage += totals.earlier
    cost = add_dollars(totals.cost_usd, totals.earlier_cost_usd)
    return Tokens(
        calls=usage.calls,
        input=usage.input_tokens,
        output=usage.output_tokens,
        cached=totals.cached,
        cost_usd=None if cost is None else round(cost, 9),
    )


def ignore(_: object) -> None:
    """Take something, and do nothing."""
