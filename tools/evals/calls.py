"""Models that are asked without a loop, as a judge and in the direct strategy: through a broker all the same, so that
prices, budgets and the cache are those of runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from ...engine.broker.broker import Broker, CallRules
from ...engine.broker.budget import Budget, BudgetLimits
from ...engine.broker.cache import ResponseCache
from ...engine.broker.dispatch import CallTimeout
from ...engine.result import CallTotals
from ...engine.runlog.writer import RunLogger
from ...handlers import Completion, Message, ModelHandler, Usage
from .records import Tokens


class Judge:
    """Asks a judge on behalf of one example, and counts. An answer that is in the cache is not asked for."""

    def __init__(self, broker: Broker, seconds: float | None) -> None:
        self._broker = broker
        self._seconds = seconds

    async def __call__(self, messages: Sequence[Message]) -> Completion:
        """The judge's reply.

        Raises:
            HandlerError: there is none.
        """
        try:
            async with asyncio.timeout(self._seconds):
                completion, _ = await self._broker.ask_supervisor(messages, _ignore)
        except TimeoutError:
            raise CallTimeout(f"the judge did not answer within {self._seconds} s") from None
        return completion

    @property
    def tokens(self) -> Tokens:
        """What it took so far."""
        return tokens_of(self._broker.supervisor.usage, self._broker.supervisor.totals)


@asynccontextmanager
async def opened_judge(
    handler: ModelHandler, cache: ResponseCache | None, seconds: float | None
) -> AsyncGenerator[Judge]:
    """A judge for one example."""
    async with one_model(handler, RunLogger(None, ""), cache) as broker:
        yield Judge(broker, seconds)


@asynccontextmanager
async def one_model(
    handler: ModelHandler,
    log: RunLogger,
    cache: ResponseCache | None,
    *,
    limits: BudgetLimits | None = None,
    cache_sampled: bool = True,
) -> AsyncGenerator[Broker]:
    """A broker whose supervisor is the model, and which has no worker."""
    rules = CallRules(cache, cache_sampled, cache_counts=True)
    async with Broker(handler, None, log, _ignore, budget=Budget(limits), rules=rules) as broker:
        yield broker


def tokens_of(usage: Usage, totals: CallTotals) -> Tokens:
    """What a model's calls took, by whomever they were paid for."""
    usage += totals.earlier
    costs = totals.cost_usd, totals.earlier_cost_usd
    cost = None if costs[0] is None or costs[1] is None else round(costs[0] + costs[1], 9)
    return Tokens(
        calls=usage.calls, input=usage.input_tokens, output=usage.output_tokens, cached=totals.cached, cost_usd=cost
    )  # fmt: skip


def _ignore(_: object) -> None:
    return None
