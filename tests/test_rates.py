"""Requests and tokens a minute: the window by itself, with a clock of its own, and those who wait for it."""

from __future__ import annotations

import asyncio
import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support import FakeClock

from supdist.handlers.rates import MINUTE, RateLimit, Use, admit

SHORT = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_requests_are_counted_over_the_last_minute_alone() -> None:
    clock = FakeClock()
    limit = RateLimit(2, None, clock=clock)
    assert [limit.take(Use(0)), limit.take(Use(0))] == [0.0, 0.0]
    clock.now += 20
    assert limit.take(Use(0)) == 40.0
    clock.now += 40
    assert [limit.take(Use(0)), limit.take(Use(0))] == [0.0, 0.0]
    assert limit.take(Use(0)) == MINUTE


def test_wait_ends_when_enough_tokens_have_left() -> None:
    clock = FakeClock()
    limit = RateLimit(None, 100, clock=clock)
    for tokens in (30, 30, 40):
        assert limit.take(Use(tokens)) == 0.0
        clock.now += 10
    assert limit.take(Use(30)) == 30.0
    assert limit.take(Use(31)) == 40.0
    assert limit.take(Use(100)) == 50.0


def test_use_beyond_the_limit_has_a_minute_to_itself() -> None:
    clock = FakeClock()
    limit = RateLimit(None, 100, clock=clock)
    assert limit.take(Use(1)) == 0.0
    assert limit.take(Use(1000)) == MINUTE
    clock.now += MINUTE
    assert limit.take(Use(0)) == 0.0
    assert limit.take(Use(1000)) == 0.0
    assert limit.take(Use(1)) == MINUTE


def test_correction_gives_back_and_takes_more() -> None:
    limit = RateLimit(None, 100, clock=FakeClock())
    first, second = Use(90), Use(90)
    assert limit.take(first) == 0.0
    assert limit.take(second) > 0.0
    limit.correct(first, 10)
    assert limit.take(second) == 0.0
    limit.correct(second, 95)
    assert limit.take(Use(1)) > 0.0


class Windows(RuleBasedStateMachine):
    """Takes, corrections and time in any order, against what was counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.requests, self.tokens = 3, 100
        self.limit = RateLimit(self.requests, self.tokens, clock=self.clock)
        self.taken: list[Use] = []
        self.waiting: Use | None = None

    def in_window(self) -> list[Use]:
        return [use for use in self.taken if use.taken_at + MINUTE > self.clock.now]

    def fits(self, use: Use) -> bool:
        spent = sum(each.tokens for each in self.in_window())
        return len(self.in_window()) < self.requests and spent + min(use.tokens, self.tokens) <= self.tokens

    @rule(tokens=st.integers(0, 150))
    def take(self, tokens: int) -> None:
        use = Use(tokens)
        fits = self.fits(use)
        wait = self.limit.take(use)
        assert (wait == 0.0) == fits
        if fits:
            self.taken.append(use)
        else:
            self.waiting = use
            assert 0.0 < wait <= MINUTE

    @precondition(lambda self: self.waiting is not None)
    @rule()
    def wait_as_long_as_it_says(self) -> None:
        """And no shorter wait would have been enough."""
        assert self.waiting is not None
        use, self.waiting = self.waiting, None
        while wait := self.limit.take(use):
            self.clock.now += wait - 0.5
            assert not self.fits(use)
            self.clock.now += 0.5
        self.taken.append(use)

    @rule(seconds=st.integers(0, 100))  # whole ones are added up exactly
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @precondition(lambda self: bool(self.taken))
    @rule(which=st.integers(0, 10**6), tokens=st.integers(0, 150))
    def correct(self, which: int, tokens: int) -> None:
        self.limit.correct(self.taken[which % len(self.taken)], tokens)

    @invariant()
    def no_minute_has_too_many_requests(self) -> None:
        times = sorted(use.taken_at for use in self.taken)
        for first, last in zip(times, times[self.requests :], strict=False):
            assert last - first >= MINUTE


TestWindows = Windows.TestCase
TestWindows.settings = SHORT


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock the test moves; a loop with ready callbacks does not wait."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def time(self) -> float:
        return self._clock.now


class Gate(RuleBasedStateMachine):
    """Waiters come, are cancelled and are admitted in any order; the limit counts the admitted ones."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.runner = asyncio.Runner(loop_factory=lambda: FakeTimeLoop(self.clock))
        self.limit = RateLimit(3, None, clock=self.clock)
        self.turn = asyncio.Lock()
        self.came: list[tuple[Use, asyncio.Task[None]]] = []

    def waiting(self) -> list[asyncio.Task[None]]:
        return [task for _, task in self.came if not task.done()]

    def let_in(self) -> list[float]:
        return [use.taken_at for use, task in self.came if task.done() and not task.cancelled()]

    def settle(self) -> None:
        async def iterations() -> None:
            for _ in range(50):  # more than all of them need to hand on the turn
                await asyncio.sleep(0)

        self.runner.run(iterations())

    @rule()
    def come(self) -> None:
        use = Use(0)
        task = self.runner.get_loop().create_task(admit(self.limit, use, self.turn))
        self.came.append((use, task))
        self.settle()

    @precondition(lambda self: bool(self.waiting()))
    @rule(which=st.integers(0, 10**6))
    def cancel(self, which: int) -> None:
        waiting = self.waiting()
        waiting[which % len(waiting)].cancel()
        self.settle()

    @rule(seconds=st.integers(0, 70))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds
        self.settle()

    @rule()
    def minute_passes(self) -> None:
        waiting, before = len(self.waiting()), len(self.let_in())
        self.clock.now += MINUTE + 1
        self.settle()
        assert len(self.let_in()) - before == min(3, waiting)

    @invariant()
    def who_is_cancelled_or_waits_has_taken_nothing(self) -> None:
        for use, task in self.came:
            assert math.isnan(use.taken_at) == (not task.done() or task.cancelled())

    @invariant()
    def who_came_first_is_let_in_first(self) -> None:
        assert self.let_in() == sorted(self.let_in())

    @invariant()
    def none_is_over_the_limit(self) -> None:
        times = self.let_in()
        assert all(last - first >= MINUTE for first, last in zip(times, times[3:], strict=False))

    def teardown(self) -> None:
        for task in self.waiting():
            task.cancel()
        self.settle()
        self.runner.close()


TestGate = Gate.TestCase
TestGate.settings = SHORT
