"""The models of one run: a metered supervisor and the calls of a metered worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from ...handlers import ModelHandler, Retry, Usage
from ..events import Metrics, ModelRole, Retrying
from ..result import CallTotals
from ..runlog.writer import RunLogger
from .answers import CacheWatch, RunAnswers
from .budget import Budget
from .cache import ResponseCache
from .inner_calls import InnerCalls
from .metered_model import MeteredModel, add_dollars, meter
from .run_account import RunAccount
from .worker_calls import WorkerCalls
from .worker_health import WorkerHealth


@dataclass(frozen=True, slots=True)
class CallSettings:
    """Settings for the calls of a run.

    Attributes:
        cache: ``run`` keeps answers in memory.
        cache_sampled: whether sampled answers are kept.
        call_seconds: deadline of a worker call.
        cache_counts: whether the budget pays for answers of other runs.
    """

    cache: ResponseCache | Literal["run"] | None = None
    cache_sampled: bool = False
    call_seconds: float | None = None
    cache_counts: bool = False

    def answers(self, watch: CacheWatch | None = None) -> RunAnswers:
        """Return the answers that both models share."""
        return RunAnswers(self.cache, sampled=self.cache_sampled, charged=self.cache_counts, watch=watch)


@dataclass(frozen=True, slots=True)
class Broker:
    """The models of one run."""

    account: RunAccount
    supervisor: MeteredModel
    worker_calls: WorkerCalls | None

    @property
    def budget(self) -> Budget:
        """The budget of the run."""
        return self.account.budget

    @property
    def health(self) -> WorkerHealth:
        """The prompts to the worker."""
        return self.account.health

    @property
    def supervisor_usage(self) -> Usage:
        """What was paid to supervisors, in the runs inside this one too."""
        return self.supervisor.usage + self.account.supervisor.usage

    @property
    def worker_usage(self) -> Usage:
        """What was paid to workers, in the runs inside this one too."""
        own = Usage() if self.worker_calls is None else self.worker_calls.model.usage
        return own + self.account.worker.usage

    @property
    def supervisor_totals(self) -> CallTotals:
        """Other figures of the supervisor's calls; the dollars of the runs inside this one are in them."""
        return _with_inner(self.supervisor.totals, self.account.supervisor)

    @property
    def worker_totals(self) -> CallTotals:
        """The same of the worker's."""
        own = CallTotals() if self.worker_calls is None else self.worker_calls.model.totals
        return _with_inner(own, self.account.worker)

    @property
    def cost_usd(self) -> float | None:
        """Dollars spent; None if a price is unknown."""
        return add_dollars(self.supervisor_totals.cost_usd, self.worker_totals.cost_usd)

    async def store_answers(self) -> int:
        """Write the last answers into the cache; return how many paid ones it could not keep."""
        return await self.supervisor.answers.finish()

    @property
    def worker_model(self) -> str:
        """The worker's name; empty without one."""
        return "" if self.worker_calls is None else self.worker_calls.model.handler.model

    def metrics(self) -> Metrics:
        """Return counts and costs of the calls."""
        calls, left = self.worker_calls, self.budget.unspent()
        # Not of the totals: this is called twice for each worker call.
        own = 0.0 if calls is None else calls.model.cost_usd
        costs = (
            add_dollars(self.supervisor.cost_usd, self.account.supervisor.cost_usd),
            add_dollars(own, self.account.worker.cost_usd),
        )
        if calls is None:
            return Metrics(
                cost_usd=add_dollars(*costs),
                supervisor_cost_usd=costs[0],
                worker_cost_usd=costs[1],
                left=left,
            )
        failed = self.health.failed
        return Metrics(
            queued=calls.queued,
            in_flight=calls.in_flight,
            done=self.health.done,
            failed=failed.total(),
            cached=calls.model.cached,
            usage=self.worker_usage,
            cost_usd=add_dollars(*costs),
            supervisor_cost_usd=costs[0],
            worker_cost_usd=costs[1],
            failed_calls=dict(failed) if failed else {},
            left=left,
        )


def _with_inner(own: CallTotals, inner: InnerCalls) -> CallTotals:
    return replace(own, cost_usd=add_dollars(own.cost_usd, inner.cost_usd))


@asynccontextmanager
async def open_broker(
    supervisor: ModelHandler,
    worker: ModelHandler | None,
    log: RunLogger,
    on_metrics: Callable[[Metrics], None] | None = None,
    *,
    on_retry: Callable[[Retrying], None] | None = None,
    account: RunAccount | None = None,
    settings: CallSettings | None = None,
) -> AsyncGenerator[Broker]:
    """Prepare the models of a run; flush their answers at the end.

    Args:
        supervisor, worker: entered handlers.
        on_metrics: called when a worker call begins or ends.
        on_retry: called when a request will be sent again.
        account: its budget, and the outer run's.

    Raises:
        TaskError: dollars are limited and a price is unknown.
    """
    # Without limits nothing is reserved.
    account, settings = account or RunAccount(""), settings or CallSettings()
    budget, outer, answers = account.budget, account.outer, settings.answers(log)
    outer_calls = (None, None) if outer is None else (outer.supervisor, outer.worker)

    def report_retry(role: ModelRole, retry: Retry) -> None:
        if on_retry is not None:
            on_retry(Retrying(role, retry.reason, retry.seconds, retry.attempt, retry.attempts))

    told = partial(report_retry, "supervisor"), partial(report_retry, "worker")
    metered = await meter(
        supervisor, budget, answers, outer=outer_calls[0], role="supervisor", on_retry=told[0]
    )
    calls: WorkerCalls | None = None
    if worker is not None:
        # Only the supervisor's conversation grows, so only its window is looked up.
        model = await meter(
            worker, budget, answers, needs_window=False, outer=outer_calls[1], on_retry=told[1]
        )

        def report() -> None:
            if on_metrics is not None:
                on_metrics(broker.metrics())

        health, seconds = account.health, settings.call_seconds
        calls = WorkerCalls(model, log, on_metrics and report, health=health, seconds=seconds)
    broker = Broker(account, metered, calls)
    try:
        yield broker
    finally:
        await broker.store_answers()
