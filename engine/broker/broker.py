"""The models of one run: a metered supervisor and the calls of a metered worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from ...handlers import ModelHandler
from ..events import Metrics
from ..runlog.writer import RunLogger
from .answers import CacheWatch, RunAnswers
from .budget import Budget
from .cache import ResponseCache
from .metered_model import MeteredModel, add_dollars, meter
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

    budget: Budget
    supervisor: MeteredModel
    worker_calls: WorkerCalls | None
    health: WorkerHealth

    @property
    def cost_usd(self) -> float | None:
        """Dollars spent; None if a price is unknown."""
        worker = 0.0 if self.worker_calls is None else self.worker_calls.model.cost_usd
        return add_dollars(self.supervisor.cost_usd, worker)

    async def store_answers(self) -> int:
        """Write the last answers into the cache; return how many paid ones it could not keep."""
        return await self.supervisor.answers.finish()

    @property
    def worker_model(self) -> str:
        """The worker's name; empty without one."""
        return "" if self.worker_calls is None else self.worker_calls.model.handler.model

    def metrics(self) -> Metrics:
        """Return counts and costs of the calls."""
        calls = self.worker_calls
        if calls is None:
            return Metrics(cost_usd=self.cost_usd)
        return Metrics(
            queued=calls.queued,
            in_flight=calls.in_flight,
            done=self.health.done,
            failed=self.health.failed.total(),
            cached=calls.model.cached,
            usage=calls.model.usage,
            cost_usd=self.cost_usd,
        )


@asynccontextmanager
async def open_broker(
    supervisor: ModelHandler,
    worker: ModelHandler | None,
    log: RunLogger,
    on_metrics: Callable[[Metrics], None] | None = None,
    *,
    budget: Budget | None = None,
    settings: CallSettings | None = None,
) -> AsyncGenerator[Broker]:
    """Prepare the models of a run; flush their answers at the end.

    Args:
        supervisor, worker: entered handlers.
        on_metrics: called when a worker call begins or ends.

    Raises:
        TaskError: dollars are limited and a price is unknown.
    """
    # Without limits nothing is reserved.
    budget, settings = budget or Budget(), settings or CallSettings()
    answers = settings.answers(log)
    metered = await meter(supervisor, budget, answers)
    calls: WorkerCalls | None = None
    health = WorkerHealth()
    if worker is not None:
        # Only the supervisor's conversation grows, so only its window is looked up.
        model = await meter(worker, budget, answers, needs_window=False)

        def report() -> None:
            if on_metrics is not None:
                on_metrics(broker.metrics())

        calls = WorkerCalls(model, log, on_metrics and report, health=health, seconds=settings.call_seconds)
    broker = Broker(budget, metered, calls, health)
    try:
        yield broker
    finally:
        await broker.store_answers()
