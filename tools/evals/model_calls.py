"""Models that are asked without a loop: a judge, and the model of the direct strategy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from ...engine.broker.answers import RunAnswers
from ...engine.broker.budget import Budget, BudgetLimits
from ...engine.broker.cache import ResponseCache
from ...engine.broker.handler_queue import CallTimeout
from ...engine.broker.metered_model import MeteredModel, add_dollars, meter
from ...engine.result import CallTotals
from ...handlers import Completion, Message, ModelHandler, Usage
from .records import Tokens


class Judge:
    """Asks a judge for one example, and counts its tokens."""

    def __init__(self, model: MeteredModel, seconds: float | None) -> None:
        self._model = model
        self._seconds = seconds

    async def __call__(self, messages: Sequence[Message]) -> Completion:
        """Return the judge's reply.

        Raises:
            HandlerError: there is none.
        """
        try:
            async with asyncio.timeout(self._seconds):
                completion, _ = await self._model.ask(messages, _ignore)
        except TimeoutError:
            raise CallTimeout(f"the judge did not answer within {self._seconds} s") from None
        return completion

    @property
    def tokens(self) -> Tokens:
        """The tokens and dollars so far."""
        return tokens_of(self._model.usage, self._model.totals)


@asynccontextmanager
async def open_judge(
    handler: ModelHandler, cache: ResponseCache | None, seconds: float | None
) -> AsyncGenerator[Judge]:
    """Open a judge for one example."""
    async with metered_model(handler, cache) as model:
        yield Judge(model, seconds)


@asynccontextmanager
async def metered_model(
    handler: ModelHandler,
    cache: ResponseCache | None,
    *,
    limits: BudgetLimits | None = None,
    cache_sampled: bool = True,
) -> AsyncGenerator[MeteredModel]:
    """Open a model with a budget of its own."""
    # Metered like the models of runs, so that prices, budgets and the cache are the same.
    answers = RunAnswers(cache, sampled=cache_sampled, charged=True)
    model = await meter(handler, Budget(limits), answers)
    try:
        yield model
    finally:
        # An answer that is not written yet would be paid for again.
        await answers.flushed()


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


def _ignore(_: object) -> None:
    return None
