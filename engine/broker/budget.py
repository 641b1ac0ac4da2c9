"""The budget of a run: reserved before a call, settled after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache
from threading import RLock
from types import TracebackType
from typing import Literal

from pydantic import Field

from ...handlers import Usage
from ..errors import EngineError
from ..events import Remaining
from ..validation import Options

Limit = Literal["max_worker_calls", "max_tokens", "max_cost_usd", "max_seconds"]

_COUNTED: tuple[Limit, ...] = ("max_worker_calls", "max_tokens", "max_cost_usd")
_NANOS = 1_000_000_000


class BudgetLimits(Options):
    """The limits of a run; None is no limit."""

    # ``RunConfig`` says what each is; ``RunLimits`` shows it.
    max_worker_calls: int | None = Field(default=None, gt=0)
    max_tokens: int | None = Field(default=None, gt=0)
    max_cost_usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Cost:
    """The most that a call takes; None dollars are unknown.

    Raises:
        ValueError: one is negative or not finite.
    """

    worker_calls: int = 0
    tokens: int = 0
    dollars: float | None = 0.0

    def __post_init__(self) -> None:
        for amount in (self.worker_calls, self.tokens, self.dollars or 0):
            if not 0 <= amount < float("inf"):
                raise ValueError(f"a cost must be finite and not negative: {self}")


@dataclass(frozen=True, slots=True)
class Spent:
    """Settled amounts; None dollars are unknown."""

    worker_calls: int
    tokens: int
    dollars: float | None
    seconds: float


class BudgetExceeded(EngineError):
    """A cost does not fit. Waiting helps unless ``for_good``."""

    def __init__(self, limit: Limit, *, for_good: bool, why: str = "") -> None:
        super().__init__(f"{limit} {why or ('is reached' if for_good else 'is reserved')}")
        self.limit: Limit = limit
        self.for_good = for_good


class Budget:
    """The limits of one run and the amounts taken. A cost must fit the outer runs' limits, too."""

    def __init__(
        self,
        limits: BudgetLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        outer: Budget | None = None,
    ) -> None:
        """Start the clock of ``max_seconds``."""
        self.is_closed = False
        # This one and those of the outer runs. They may be in other threads, each with an event loop.
        self._chain: list[Budget] = [self, *(outer._chain if outer is not None else ())]
        self._lock: RLock = outer._lock if outer is not None else RLock()
        self._limits = _counted_limits(limits or BudgetLimits())
        self._max_seconds = limits.max_seconds if limits else None
        self._limiting = [each for each in self._chain if each._limits or each._max_seconds is not None]
        self._clock = clock
        self._started = clock()
        self._settled: dict[Limit, int] = dict.fromkeys(_COUNTED, 0)
        self._reserved: dict[Limit, int] = dict.fromkeys(_COUNTED, 0)
        self._held: dict[Limit, int] = dict.fromkeys(_COUNTED, 0)
        self._is_priced = True
        self._acquiring = asyncio.Lock()
        self._when_freed: dict[Callable[[], None], asyncio.AbstractEventLoop | None] = {}
        self._freed = asyncio.Event()

    def reserve(self, cost: Cost) -> Reservation:
        """Reserve a cost.

        Raises:
            BudgetExceeded: it does not fit.
        """
        with self._lock:
            amounts = self._check_fits(cost)
            return Reservation(amounts, [each._reserved for each in self._chain], self._lock, self._end)

    def hold(self, cost: Cost) -> Reservation:
        """Reserve a cost for a later call.

        Raises:
            BudgetExceeded: it does not fit.
        """
        with self._lock:
            amounts = self._check_fits(cost)
            return Reservation(amounts, [each._held for each in self._chain], self._lock, self._end)

    def reserve_each(self, costs: Iterable[Cost]) -> list[Reservation | BudgetExceeded]:
        """Reserve each cost that fits; return refusals in place."""
        results: list[Reservation | BudgetExceeded] = []
        for cost in costs:
            try:
                results.append(self.reserve(cost))
            except BudgetExceeded as refusal:
                results.append(refusal)
        return results

    # The caller must hold no other reservation: two such callers would wait for each other.
    async def acquire(self, cost: Cost) -> Reservation:
        """Wait until a cost fits.

        Raises:
            BudgetExceeded: it never can.
        """
        try:
            async with asyncio.timeout(self.left().seconds), self._acquiring:
                while True:
                    # Before the attempt: another thread may free something right after it.
                    self._freed.clear()
                    self.call_when_freed(self._freed.set)
                    (result,) = self.reserve_each([cost])
                    if isinstance(result, Reservation):
                        return result
                    if result.for_good:
                        raise result
                    await self._freed.wait()
        except TimeoutError:
            raise BudgetExceeded("max_seconds", for_good=True) from None

    def charge(self, cost: Cost) -> None:
        """Count a cost that another run paid, even beyond a limit."""
        self._end(cost)

    def call_when_freed(self, callback: Callable[[], None]) -> None:
        """Call this in the running event loop when the next reservation ends."""
        loop = _running_loop()
        with self._lock:
            for each in self._chain:
                each._when_freed[callback] = loop

    def close(self) -> None:
        """Refuse all further costs, those of the runs inside this one too."""
        with self._lock:
            self.is_closed = True
        self._call_waiting([self])

    def limits(self, *names: Limit) -> bool:
        """Return whether any of these is limited."""
        return any(name in each._limits for each in self._chain for name in names)

    @property
    def reserves(self) -> bool:
        """Whether costs must be reserved: something is limited, or an outer run may end."""
        return len(self._chain) > 1 or self.limits(*_COUNTED)

    def left(self) -> Remaining:
        """Return what may still be reserved."""
        nanos = self._free("max_cost_usd")
        return Remaining(
            self._free("max_worker_calls"),
            self._free("max_tokens"),
            None if nanos is None else nanos / _NANOS,
            self._seconds_left(),
        )

    def unspent(self) -> Remaining | None:
        """Return the limits minus what was settled; None without limits."""
        if not self._limiting:
            return None
        left: dict[Limit, int] = {}
        for each in self._limiting:
            for limit, most in each._limits.items():
                own = max(0, most - each._settled[limit])
                left[limit] = min(own, left.get(limit, own))
        nanos = left.get("max_cost_usd")
        dollars = None if nanos is None else nanos / _NANOS
        return Remaining(left.get("max_worker_calls"), left.get("max_tokens"), dollars, self._seconds_left())

    def spent(self) -> Spent:
        """Return what was settled."""
        calls, tokens, nanos = (self._settled[limit] for limit in _COUNTED)
        dollars = nanos / _NANOS if self._is_priced else None
        return Spent(calls, tokens, dollars, self._clock() - self._started)

    def _free(self, limit: Limit) -> int | None:
        left = [each._own_free(limit) for each in self._chain if limit in each._limits]
        return min(left, default=None)

    def _own_free(self, limit: Limit) -> int:
        taken = self._settled[limit] + self._held[limit] + self._reserved[limit]
        return max(0, self._limits[limit] - taken)

    def _seconds_left(self) -> float | None:
        left = [each._own_seconds_left() for each in self._chain]
        return min((seconds for seconds in left if seconds is not None), default=None)

    def _own_seconds_left(self) -> float | None:
        # With its outer run, the time of a run is over.
        if self.is_closed:
            return 0.0
        if self._max_seconds is None:
            return None
        return max(0.0, self._max_seconds - (self._clock() - self._started))

    def _check_fits(self, cost: Cost) -> dict[Limit, int]:
        if self._seconds_left() == 0:
            raise BudgetExceeded("max_seconds", for_good=True)
        if cost.dollars is None and self.limits("max_cost_usd"):
            raise BudgetExceeded("max_cost_usd", for_good=True)  # an unknown price may not fit
        amounts = _amounts(cost)
        refusals = [refusal for each in self._chain if (refusal := each._own_refusal(amounts)) is not None]
        if refusals:
            raise next((refusal for refusal in refusals if refusal.for_good), refusals[0])
        return amounts

    def _own_refusal(self, amounts: dict[Limit, int]) -> BudgetExceeded | None:
        refusal = None
        for limit, most in self._limits.items():
            free = most - self._settled[limit] - self._held[limit]
            # A limit that the cost takes nothing from is not checked.
            if 0 < amounts[limit] > free:
                why = _too_small(limit, most, amounts[limit]) if amounts[limit] > most else ""
                return BudgetExceeded(limit, for_good=True, why=why)
            if 0 < amounts[limit] > free - self._reserved[limit]:
                refusal = BudgetExceeded(limit, for_good=False)
        return refusal

    def _end(self, paid: Cost | None) -> None:
        if paid is not None:
            amounts = _amounts(paid)
            with self._lock:
                for each in self._chain:
                    _add(each._settled, amounts)
                    each._is_priced = each._is_priced and paid.dollars is not None
        self._call_waiting(self._chain)

    def _call_waiting(self, budgets: Sequence[Budget]) -> None:
        callbacks: dict[Callable[[], None], asyncio.AbstractEventLoop | None] = {}
        with self._lock:
            for each in budgets:
                callbacks |= each._when_freed
                # A callback may register itself again.
                each._when_freed = {}
        here = _running_loop() if callbacks else None
        for callback, loop in callbacks.items():
            if loop is None or loop is here:
                callback()
            else:
                # No run waits in a closed loop.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(callback)


class Reservation:
    """A reserved part of a budget; only its first end counts."""

    def __init__(
        self,
        amounts: dict[Limit, int],
        totals: list[dict[Limit, int]],
        lock: AbstractContextManager[object],
        end: Callable[[Cost | None], None],
    ) -> None:
        self._amounts = amounts
        self._totals = totals
        self._lock = lock
        self._end = end
        self._open = True
        for each in totals:
            _add(each, amounts)

    def settle(self, usage: Usage, dollars: float | None) -> None:
        """Replace the reservation by the actual cost.

        Raises:
            ValueError: a number is negative or not finite.
        """
        paid = Cost(self._amounts["max_worker_calls"], usage.input_tokens + usage.output_tokens, dollars)
        self._close(paid)

    def release(self) -> None:
        """Give everything back."""
        self._close(None)

    def _close(self, paid: Cost | None) -> None:
        if self._open:
            self._open = False
            with self._lock:
                for each in self._totals:
                    _add(each, self._amounts, -1)
            self._end(paid)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _too_small(limit: Limit, most: int, needed: int) -> str:
    """Say of a limit that even the first call does not fit."""
    if limit == "max_cost_usd":
        has, takes = f"${most / _NANOS:,.4f}", f"${needed / _NANOS:,.4f}"
    else:
        has, takes = f"{most:,}", f"{needed:,} {'tokens' if limit == 'max_tokens' else 'calls'}"
    return f"{has} is too small for one call, which reserves about {takes}"


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _counted_limits(limits: BudgetLimits) -> dict[Limit, int]:
    dollars = limits.max_cost_usd
    nanos = None if dollars is None else _nanos(dollars, ROUND_FLOOR)
    all_of_them = zip(_COUNTED, (limits.max_worker_calls, limits.max_tokens, nanos), strict=True)
    return {limit: most for limit, most in all_of_them if most is not None}


# Whole billionths, rounded against the spender, so that no sum drifts past its limit.
def _amounts(cost: Cost) -> dict[Limit, int]:
    nanos = _nanos(cost.dollars or 0.0, ROUND_CEILING)
    return {"max_worker_calls": cost.worker_calls, "max_tokens": cost.tokens, "max_cost_usd": nanos}


def _add(sums: dict[Limit, int], amounts: dict[Limit, int], times: int = 1) -> None:
    for limit, amount in amounts.items():
        sums[limit] += times * amount


@lru_cache(1024)
def _nanos(dollars: float, rounding: str) -> int:
    return int(Decimal(repr(float(dollars))).scaleb(9).to_integral_value(rounding))
