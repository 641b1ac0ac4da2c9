"""Equal calls are made once, for as long as somebody waits, whatever is cancelled when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supdist.engine.single_flight import SingleFlight

pytestmark = pytest.mark.anyio


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Calls:
    """Calls that end when they are told to, and remember how."""

    def __init__(self, *, slow_to_cancel: bool = False) -> None:
        self.started: list[asyncio.Future[int]] = []
        self.ended: list[str] = []
        self.keys: list[object] = []
        self._slow = slow_to_cancel

    def of(self, key: object = None) -> Callable[[], Coroutine[Any, Any, int]]:
        async def call() -> int:
            number = len(self.started)
            self.started.append(asyncio.get_running_loop().create_future())
            self.ended.append("")
            self.keys.append(key)
            try:
                result = await self.started[number]
            except asyncio.CancelledError:
                self.ended[number] = "cancelling"
                if self._slow:
                    await turns()
                self.ended[number] = "cancelled"
                raise
            except ValueError:
                self.ended[number] = "failed"
                raise
            self.ended[number] = "done"
            return result

        return call

    def live(self, key: object) -> list[int]:
        return [i for i, end in enumerate(self.ended) if self.keys[i] == key and not end]


async def test_equal_calls_at_once_are_made_once_and_others_on_their_own() -> None:
    flights, calls = SingleFlight[str, int](), Calls()
    waiters = [asyncio.create_task(flights.run(key, calls.of())) for key in ("a", "a", "b", "a")]
    await turns()
    assert "a" in flights
    assert len(calls.started) == 2
    calls.started[0].set_result(1)
    calls.started[1].set_result(2)
    assert await asyncio.gather(*waiters) == [1, 1, 2, 1]
    assert "a" not in flights


async def test_a_call_that_ended_is_made_again() -> None:
    flights, calls = SingleFlight[str, int](), Calls()
    for number in range(2):
        waiter = asyncio.create_task(flights.run("a", calls.of()))
        await turns()
        calls.started[number].set_result(number)
        assert await waiter == number


async def test_an_exception_reaches_all_and_is_not_kept() -> None:
    flights, calls = SingleFlight[str, int](), Calls()

    async def twice() -> int:
        try:
            return await flights.run("a", calls.of())
        except ValueError:
            return await flights.run("a", calls.of())

    waiters = [asyncio.create_task(twice()) for _ in range(3)]
    await turns()
    calls.started[0].set_exception(ValueError())
    await turns()
    assert len(calls.started) == 2
    calls.started[1].set_result(7)
    assert await asyncio.gather(*waiters) == [7, 7, 7]


async def test_a_cancelled_waiter_leaves_the_call_to_the_others() -> None:
    flights, calls = SingleFlight[str, int](), Calls()
    first, second = (asyncio.create_task(flights.run("a", calls.of())) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    assert first.cancelled()
    calls.started[0].set_result(1)
    assert await second == 1


async def test_the_last_waiter_takes_the_call_with_it_and_a_newcomer_starts_another() -> None:
    flights, calls = SingleFlight[str, int](), Calls(slow_to_cancel=True)
    first = asyncio.create_task(flights.run("a", calls.of()))
    await turns()
    first.cancel()
    await asyncio.sleep(0)
    second = asyncio.create_task(flights.run("a", calls.of()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert calls.ended == ["cancelling", ""]
    assert not first.done(), "it waits until the call has ended"
    await asyncio.wait((first,))
    assert calls.ended == ["cancelled", ""]
    calls.started[1].set_result(2)
    assert await second == 2


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["wait", "wait", "cancel", "give", "fail", "turn", "turn"]),
        st.integers(0, 1),
        st.integers(0, 9),
    ),
    max_size=40,
)


class Play:
    def __init__(self, slow_to_cancel: bool) -> None:
        self.flights, self.calls = SingleFlight[int, int](), Calls(slow_to_cancel=slow_to_cancel)
        self.waiters: list[tuple[int, asyncio.Task[int]]] = []
        self.cancelled = set[asyncio.Task[int]]()

    def wait(self, key: int, number: int) -> None:
        self.waiters.append((key, asyncio.create_task(self.flights.run(key, self.calls.of(key)))))

    def cancel(self, key: int, number: int) -> None:
        if self.waiters:
            _, waiter = self.waiters[number % len(self.waiters)]
            if waiter.cancel():
                self.cancelled.add(waiter)

    def give(self, key: int, number: int) -> None:
        self._end(key, lambda future, which: future.set_result(which))

    def fail(self, key: int, number: int) -> None:
        self._end(key, lambda future, which: future.set_exception(ValueError(which)))

    def _end(self, key: int, how: Callable[[asyncio.Future[int], int], None]) -> None:
        for which in self.calls.live(key):
            if not self.calls.started[which].done():
                how(self.calls.started[which], which)

    def check(self) -> None:
        for key in (0, 1):
            assert len(self.calls.live(key)) <= 1
        for key, waiter in self.waiters:
            if not waiter.done():
                continue
            if waiter.cancelled():
                assert waiter in self.cancelled, "nobody is cancelled for another"
                continue
            error = waiter.exception()
            which = waiter.result() if error is None else error.args[0]
            assert self.calls.keys[which] == key
            assert self.calls.ended[which] == ("done" if error is None else "failed")


@given(STEPS, st.booleans())
def test_under_any_interleaving_who_waits_is_served_and_nothing_runs_for_nobody(
    steps: list[tuple[str, int, int]], slow_to_cancel: bool
) -> None:
    async def run() -> None:
        play = Play(slow_to_cancel)
        for action, key, number in steps:
            if action == "turn":
                await asyncio.sleep(0)
            else:
                getattr(play, action)(key, number)
            play.check()
        for number in range(len(play.waiters)):
            play.cancel(0, number)
        for _ in range(3):
            await turns()
        play.check()
        assert all(waiter.done() for _, waiter in play.waiters)
        assert all(play.calls.ended), "a call whose waiters are gone is gone"
        assert 0 not in play.flights
        assert 1 not in play.flights

    asyncio.run(run())
