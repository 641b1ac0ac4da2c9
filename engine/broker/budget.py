"""The budget of a run: reserved before a call, settled after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache
from types import TracebackType
from typing import Literal

from pydantic import Field

from ...handlers import Usage
from ..errors import EngineError
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
class Remaining:
    """What is left to reserve; None is no limit."""

    worker_calls: int | None
    tokens: int | None
    dollars: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Spent:
    """Settled amounts; None dollars are unknown."""

    worker_calls: int
    tokens: int
    dollars: float | None
    seconds: float


class BudgetExceeded(EngineError):
    """A cost does not fit. Waiting helps unless ``for_good``."""

    def __init__(self, limit: Limit, *, for_good: bool) -> None:
        super().__init__(f"{limit} is {'reached' if for_good else 'reserved'}")
        self.limit: Limit = limit
        self.for_good = for_good


class Budget:
    """The limits of one run and the amounts taken."""

    def __init__(
        self, limits: BudgetLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start the clock of ``max_seconds``."""
        self._limits = _counted_limits(limits or BudgetLimits())
        self._max_seconds = limits.max_seconds if limits else None
        self._clock = clock
        self._started = clock()
        self._settled: dict[Limit, int] = dict.fromkeys(_COUNTED, 0)
        self._reserved: dict[Limit, int] = dict.fromkeys(_COUNTED, 0)
        self._held: dict[Limit, int] = dict.fromkeys(_COUNTED, 0)
        self._is_priced = True
        self._acquiring = asyncio.Lock()
        self._when_freed: dict[Callable[[], None], None] = {}
        self._freed = asyncio.Event()

    def reserve(self, cost: Cost) -> Reservation:
        """Reserve a cost.

        Raises:
            BudgetExceeded: it does not fit.
        """
        amounts = self._check_fits(cost)
        return Reservation(amounts, self._reserved, self._end)

    def hold(self, cost: Cost) -> Reservation:
        """Reserve a cost for a later call.

        Raises:
            BudgetExceeded: it does not fit.
        """
        amounts = self._check_fits(cost)
        return Reservation(amounts, self._held, self._end)

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
                    (result,) = self.reserve_each([cost])
                    if isinstance(result, Reservation):
                        return result
                    if result.for_good:
                        raise result
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            raise BudgetExceeded("max_seconds", for_good=True) from None

    def charge(self, cost: Cost) -> None:
        """Count a cost that another run paid, even beyond a limit."""
        self._end(cost)

    def call_when_freed(self, callback: Callable[[], None]) -> None:
        """Call this once, when the next reservation ends."""
        self._when_freed[callback] = None

    def limits(self, *names: Limit) -> bool:
        """Return whether any of these is limited."""
        return any(name in self._limits for name in names)

    def left(self) -> Remaining:
        """Return what may still be reserved."""
        nanos = self._free("max_cost_usd")
        return Remaining(
            self._free("max_worker_calls"),
            self._free("max_tokens"),
            None if nanos is None else nanos / _NANOS,
            self._seconds_left(),
        )

    def spent(self) -> Spent:
        """Return what was settled."""
        calls, tokens, nanos = (self._settled[limit] for limit in _COUNTED)
        dollars = nanos / _NANOS if self._is_priced else None
        return Spent(calls, tokens, dollars, self._clock() - self._started)

    def _free(self, limit: Limit) -> int | None:
        if limit not in self._limits:
            return None
        taken = self._settled[limit] + self._held[limit] + self._reserved[limit]
        return max(0, self._limits[limit] - taken)

    def _seconds_left(self) -> float | None:
        if self._max_seconds is None:
            return None
        return max(0.0, self._max_seconds - (self._clock() - self._started))

    def _check_fits(self, cost: Cost) -> dict[Limit, int]:
        if self._seconds_left() == 0:
            raise BudgetExceeded("max_seconds", for_good=True)
        if cost.dollars is None and "max_cost_usd" in self._limits:
            raise BudgetExceeded("max_cost_usd", for_good=True)  # an unknown price may not fit
        amounts = _amounts(cost)
        refusal = None
        for limit, most in self._limits.items():
            free = most - self._settled[limit] - self._held[limit]
            # A limit that the cost takes nothing from is not checked.
            if 0 < amounts[limit] > free:
                raise BudgetExceeded(limit, for_good=True)
            if 0 < amounts[limit] > free - self._reserved[limit]:
                refusal = BudgetExceeded(limit, for_good=False)
        if refusal is not None:
            raise refusal
        return amounts

    def _end(self, paid: Cost | None) -> None:
        if paid is not None:
            _add(self._settled, _amounts(paid))
            self._is_priced = self._is_priced and paid.dollars is not None
        self._freed.set()
        # A callback may register itself again.
        callbacks, self._when_freed = self._when_freed, {}
        for callback in callbacks:
            callback()


class Reservation:
    """A reserved part of a budget; only its first end counts."""

    def __init__(
        self, amounts: dict[Limit, int], totals: dict[Limit, int], end: Callable[[Cost | None], None]
    ) -> None:
        self._amounts = amounts
        self._totals = totals
        self._end = end
        self._open = True
        _add(totals, amounts)

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
            _add(self._totals, self._amounts, -1)
            self._end(paid)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


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
