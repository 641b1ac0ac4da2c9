"""Limits hold under any interleaving, and nothing that was set aside is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pydantic import ValidationError
from support import FakeClock, run_pending

from supdist.engine.broker.budget import Budget, BudgetExceeded, BudgetLimits, Cost, Limit, Reservation
from supdist.handlers import Usage

pytestmark = pytest.mark.anyio


def limited(clock: FakeClock | None = None, /, **limits: Any) -> Budget:
    return Budget(BudgetLimits.model_validate(limits), clock or FakeClock())


def refused(budget: Budget, cost: Cost) -> tuple[Limit, bool]:
    with pytest.raises(BudgetExceeded) as caught:
        budget.reserve(cost)
    return caught.value.limit, caught.value.for_good


def test_without_limits_everything_fits_and_is_counted() -> None:
    budget = Budget()
    budget.reserve(Cost(1, 10**12, 1e9)).settle(Usage(10**12, 1, 1), 1e9)
    left, spent = budget.left(), budget.spent()
    assert (left.worker_calls, left.tokens, left.dollars, left.seconds) == (None, None, None, None)
    assert (spent.worker_calls, spent.tokens, spent.dollars) == (1, 10**12 + 1, 1e9)


@pytest.mark.parametrize("value", [0, -1, "3", float("nan"), float("inf")])
def test_a_limit_is_a_positive_number(value: object) -> None:
    for name in BudgetLimits.model_fields:
        with pytest.raises(ValidationError):
            BudgetLimits.model_validate({name: value})


@pytest.mark.parametrize("cost", [{"worker_calls": -1}, {"tokens": -1}, {"dollars": float("nan")}])
def test_a_cost_is_finite_and_not_negative(cost: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        Cost(**cost)  # pyright: ignore[reportArgumentType]  # wrong on purpose


@pytest.mark.parametrize(
    ("limit", "cost"),
    [
        ("max_worker_calls", Cost(worker_calls=1)),
        ("max_tokens", Cost(tokens=1)),
        ("max_cost_usd", Cost(dollars=1.0)),
    ],
)
def test_each_limit_stops_what_takes_from_it_and_nothing_else(limit: Limit, cost: Cost) -> None:
    budget = limited(**{limit: 1})
    first = budget.reserve(cost)
    assert refused(budget, cost) == (limit, False)
    budget.reserve(Cost())
    first.settle(Usage(cost.tokens, 0, 1), cost.dollars)
    assert refused(budget, cost) == (limit, True)
    budget.reserve(Cost())


def test_the_seconds_stop_everything() -> None:
    clock = FakeClock()
    budget = limited(clock, max_seconds=10)
    clock.now += 4
    assert budget.left().seconds == 6
    clock.now += 6
    assert refused(budget, Cost()) == ("max_seconds", True)
    assert budget.left().seconds == 0
    assert budget.spent().seconds == 10


def test_an_actual_cost_replaces_the_reserved_one_whether_lower_or_higher() -> None:
    budget = limited(max_tokens=100)
    budget.reserve(Cost(tokens=60)).settle(Usage(10, 5, 1), 0.0)
    assert budget.left().tokens == 85
    budget.reserve(Cost(tokens=85)).settle(Usage(100, 20, 1), 0.0)
    assert budget.spent().tokens == 135
    assert budget.left().tokens == 0


def test_the_first_end_of_a_reservation_counts() -> None:
    budget = limited(max_tokens=100)
    settled, released = budget.reserve(Cost(1, 10)), budget.reserve(Cost(1, 10))
    settled.settle(Usage(7, 0, 1), 0.0)
    released.release()
    for late in (settled, released):
        late.release()
        late.settle(Usage(50, 0, 1), 0.0)
    assert budget.left().tokens == 93
    assert budget.spent().worker_calls == 1


def test_leaving_a_reservation_releases_what_was_not_settled() -> None:
    budget = limited(max_tokens=100)
    with pytest.raises(KeyError), budget.reserve(Cost(tokens=100)):
        raise KeyError
    with budget.reserve(Cost(tokens=100)) as reservation, pytest.raises(ValueError, match="negative"):
        reservation.settle(Usage(-1, 0, 1), 0.0)
    assert budget.left().tokens == 100
    assert budget.spent().tokens == 0


def test_those_of_a_batch_that_fit_are_reserved_in_order() -> None:
    budget = limited(max_tokens=10)
    results = budget.reserve_each(Cost(tokens=tokens) for tokens in (4, 7, 5, 11, 1, 1))
    assert [isinstance(result, Reservation) for result in results] == [True, False, True, False, True, False]
    assert [result.for_good for result in results if isinstance(result, BudgetExceeded)] == [
        False,
        True,
        False,
    ]


def test_what_is_kept_for_later_is_nothing_to_wait_for() -> None:
    budget = limited(max_tokens=10)
    kept = budget.hold(Cost(tokens=4))
    assert budget.left().tokens == 6
    assert refused(budget, Cost(tokens=7)) == ("max_tokens", True)
    kept.settle(Usage(1, 1, 1), 0.0)
    assert budget.left().tokens == 8


def test_an_unknown_price_is_said_and_refused_where_dollars_are_limited() -> None:
    assert refused(limited(max_cost_usd=1), Cost(dollars=None)) == ("max_cost_usd", True)
    budget = limited(max_tokens=10)
    budget.reserve(Cost(tokens=1, dollars=0.25)).settle(Usage(1), 0.25)
    assert budget.spent().dollars == 0.25
    budget.reserve(Cost(tokens=1, dollars=None)).settle(Usage(1), None)
    assert budget.spent().dollars is None


@pytest.mark.parametrize(
    ("limit", "each", "count"), [(0.3, 0.1, 3), (1.0, 0.001, 1000), (0.7, 0.07, 10), (1e-9, 1e-9, 1)]
)
def test_dollars_neither_drift_past_their_limit_nor_short_of_it(
    limit: float, each: float, count: int
) -> None:
    budget = limited(max_cost_usd=limit)
    for _ in range(count):
        budget.reserve(Cost(dollars=each)).settle(Usage(), each)
    assert budget.left().dollars == 0
    assert refused(budget, Cost(dollars=1e-12)) == ("max_cost_usd", True)


class AnyInterleaving(RuleBasedStateMachine):
    """Against a model in whole numbers: three lists of what was set aside, kept and settled."""

    LIMITS = (5, 100, 300_000_000)  # calls, tokens, billionths of a dollar

    def __init__(self) -> None:
        super().__init__()
        self.budget = limited(max_worker_calls=5, max_tokens=100, max_cost_usd=0.3)
        self.open: list[tuple[Reservation, tuple[int, ...]]] = []
        self.settled = (0, 0, 0)
        self.overspent = False

    def taken(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(self.settled, *(amounts for _, amounts in self.open), strict=True)))

    @rule(
        calls=st.integers(0, 1),
        tokens=st.integers(0, 60),
        nanos=st.integers(0, 150_000_000),
        keep=st.booleans(),
    )
    def reserve(self, calls: int, tokens: int, nanos: int, keep: bool) -> None:
        cost = Cost(calls, tokens, nanos / 1e9)
        amounts = (calls, tokens, nanos)
        fits = all(
            not need or taken + need <= limit
            for need, taken, limit in zip(amounts, self.taken(), self.LIMITS, strict=True)
        )
        try:
            reservation = self.budget.hold(cost) if keep else self.budget.reserve(cost)
        except BudgetExceeded:
            assert not fits
        else:
            assert fits
            self.open.append((reservation, amounts))

    def close(self, data: st.DataObject) -> tuple[Reservation, tuple[int, ...]]:
        return self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))

    @precondition(lambda self: self.open)  # pyright: ignore[reportUnknownLambdaType, reportUnknownMemberType]  # a lambda has no annotations
    @rule(data=st.data(), more=st.sampled_from([0, 0, 0, 0, 15]))
    def settle(self, data: st.DataObject, more: int) -> None:
        reservation, (calls, tokens, nanos) = self.close(data)
        used = data.draw(st.integers(0, tokens)) + more
        paid = data.draw(st.integers(0, nanos))
        read = data.draw(st.integers(0, used))
        self.overspent = self.overspent or used > tokens
        reservation.settle(Usage(read, used - read, 1), paid / 1e9)
        self.settled = tuple(a + b for a, b in zip(self.settled, (calls, used, paid), strict=True))

    @precondition(lambda self: self.open)  # pyright: ignore[reportUnknownLambdaType, reportUnknownMemberType]  # a lambda has no annotations
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        reservation, _ = self.close(data)
        reservation.release()

    @invariant()
    def what_is_left_and_spent_is_as_modelled(self) -> None:
        left, spent = self.budget.left(), self.budget.spent()
        free = [max(0, limit - taken) for limit, taken in zip(self.LIMITS, self.taken(), strict=True)]
        assert [left.worker_calls, left.tokens, left.dollars] == [free[0], free[1], free[2] / 1e9]
        assert (spent.worker_calls, spent.tokens) == self.settled[:2]
        assert spent.dollars == self.settled[2] / 1e9

    @invariant()
    def nothing_passes_a_limit_unless_a_call_took_more_than_was_reserved(self) -> None:
        if not self.overspent:
            assert all(taken <= limit for taken, limit in zip(self.taken(), self.LIMITS, strict=True))

    def teardown(self) -> None:
        for reservation, _ in self.open:
            reservation.release()
        assert self.budget.left().tokens == max(0, 100 - self.settled[1]), "nothing leaks"


AnyInterleaving.TestCase.settings = settings(max_examples=50, stateful_step_count=30)
TestAnyInterleaving = AnyInterleaving.TestCase


async def waiting(budget: Budget, *tokens: int) -> list[asyncio.Task[Reservation]]:
    tasks = [asyncio.create_task(budget.acquire(Cost(tokens=each))) for each in tokens]
    await run_pending()
    return tasks


async def test_whoever_waits_gets_what_calls_under_way_did_not_take() -> None:
    budget = limited(max_tokens=100)
    first = await budget.acquire(Cost(tokens=90))
    second, third = await waiting(budget, 60, 10)
    assert not second.done()
    assert not third.done(), "first come, first served"
    first.settle(Usage(30, 5, 1), 0.0)
    await run_pending()
    assert second.done()
    assert not third.done()
    (await second).release()
    (await third).release()
    assert budget.left().tokens == 65


async def test_who_waits_hears_at_once_that_it_will_never_fit() -> None:
    budget = limited(max_tokens=100)
    first = await budget.acquire(Cost(tokens=100))
    second, third = await waiting(budget, 60, 40)
    first.settle(Usage(50, 0, 1), 0.0)
    with pytest.raises(BudgetExceeded, match="max_tokens is reached"):
        await second
    (await third).release()


@pytest.mark.parametrize(
    ("limits", "cost", "words"),
    [
        (
            {"max_tokens": 3000},
            Cost(tokens=8000),
            "max_tokens 3,000 is too small for one .* 8,000 tokens",
        ),
        ({"max_cost_usd": 0.01}, Cost(dollars=0.5), r"max_cost_usd \$0.0100 is too .* about \$0.5000"),
    ],
)
def test_a_limit_below_one_call_says_what_the_call_reserves(
    limits: dict[str, Any], cost: Cost, words: str
) -> None:
    with pytest.raises(BudgetExceeded, match=words):
        Budget(BudgetLimits(**limits)).hold(cost)


async def test_who_waits_hears_when_the_seconds_are_over() -> None:
    budget = Budget(BudgetLimits(max_tokens=100, max_seconds=0.02))
    with budget.reserve(Cost(tokens=100)), pytest.raises(BudgetExceeded, match="max_seconds"):
        await budget.acquire(Cost(tokens=1))


class Waiters:
    """Calls that acquire from one budget of 60 tokens, and hold what they get until they are told."""

    def __init__(self) -> None:
        self.budget = limited(max_tokens=60)
        self.paid = 0
        self.tasks: list[tuple[asyncio.Task[Reservation], int]] = []

    def acquire(self, tokens: int) -> None:
        self.tasks.append((asyncio.create_task(self.budget.acquire(Cost(tokens=tokens))), tokens))

    def cancel(self, number: int) -> None:
        if self.tasks:
            self.tasks[number % len(self.tasks)][0].cancel()

    def release(self, number: int) -> None:
        if held := self._take(number):
            held[0].release()

    def settle(self, number: int) -> None:
        if held := self._take(number):
            reservation, tokens = held
            reservation.settle(Usage(number % (tokens + 1), 0, 1), 0.0)
            self.paid += number % (tokens + 1)

    def _take(self, number: int) -> tuple[Reservation, int] | None:
        held = [entry for entry in self.tasks if entry[0].done() and not entry[0].cancelled()]
        held = [entry for entry in held if entry[0].exception() is None]
        if not held:
            return None
        chosen = held[number % len(held)]
        self.tasks.remove(chosen)
        return chosen[0].result(), chosen[1]

    async def end(self) -> None:
        """Whoever can be served is served, as long as what is held is given back."""
        for _ in range(2 * len(self.tasks) + 1):
            await run_pending()
            self.release(0)
        assert all(task.done() for task, _ in self.tasks)


ACTIONS = st.sampled_from(["acquire", "settle", "release", "cancel", "turn"])


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 70)), max_size=30))
def test_under_any_interleaving_of_waiting_and_cancelling_nothing_leaks(steps: list[tuple[str, int]]) -> None:
    async def play() -> None:
        waiters = Waiters()
        for action, number in steps:
            if action == "turn":
                await run_pending()
            else:
                getattr(waiters, action)(number)
            assert waiters.budget.spent().tokens == waiters.paid <= 60
        await waiters.end()
        assert waiters.budget.left().tokens == 60 - waiters.paid

    asyncio.run(play())
