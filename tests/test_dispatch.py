"""The dispatcher: fair between queues, bounded by the handler, each request cancelled for itself."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from broker_support import GatedHandler
from hypothesis import given, settings
from hypothesis import strategies as st
from support import run_pending

from supdist.engine.broker.dispatch import Dispatcher
from supdist.engine.broker.handler_queue import Admission, CallTimeout, Request, RequestQueue
from supdist.handlers import BatchItem, Completion, Message, ModelHandler, Unavailable


class Asked(Request):
    """A request whose answer can be awaited."""

    def __init__(self, text: str, *, admission: Admission = "now", seconds: float | None = None) -> None:
        super().__init__(seconds)
        self.text = text
        self.admission: Admission = admission
        self.answer: asyncio.Future[str | Exception] = asyncio.get_running_loop().create_future()

    def conversation(self) -> Sequence[Message]:
        return [{"role": "user", "content": self.text}]

    def admit(self) -> Admission:
        return self.admission

    def finish(self, answer: Completion | Exception) -> None:
        assert not self.answer.done(), "finished twice"
        self.answer.set_result(answer.text if isinstance(answer, Completion) else answer)


def put(queue: RequestQueue, *texts: str) -> list[Asked]:
    requests = [Asked(text) for text in texts]
    queue.put(requests)
    return requests


async def test_answers_reach_their_requests() -> None:
    gate = GatedHandler(8)
    gate.release("a", "b", "c")
    requests = put(Dispatcher().queue(gate), "a", "b", "c")
    assert [await request.answer for request in requests] == ["a", "b", "c"]


async def test_no_more_than_the_handler_takes_are_with_it() -> None:
    gate = GatedHandler(3)
    texts = [str(number) for number in range(20)]
    requests = put(Dispatcher().queue(gate), *texts)
    await run_pending()
    assert gate.inside == 3
    gate.release(*texts)
    await asyncio.gather(*(request.answer for request in requests))
    assert gate.most == 3


async def test_a_flood_delays_another_queue_by_one_slot() -> None:
    gate = GatedHandler(2)
    dispatcher = Dispatcher()
    flood = put(dispatcher.queue(gate), *(f"flood {number}" for number in range(1000)))
    other = put(dispatcher.queue(gate), "other")
    await run_pending()
    assert gate.arrived == ["flood 0", "flood 1"]
    gate.release("flood 0")
    await run_pending()
    assert gate.arrived[2:] == ["flood 2"], "the flood's queue had its turn in the ring before the other came"
    gate.release("flood 1")
    await run_pending()
    assert gate.arrived[3:] == ["other"]
    gate.release("other")
    assert await other[0].answer == "other"
    gate.release(*(f"flood {number}" for number in range(1000)))
    await asyncio.gather(*(request.answer for request in flood))


async def test_a_cancelled_request_is_never_finished_and_its_slot_goes_on() -> None:
    gate = GatedHandler(1)
    queue = Dispatcher().queue(gate)
    running, waiting, last = put(queue, "running", "waiting", "last")
    await run_pending()
    queue.cancel([running, waiting])
    gate.release("running", "waiting", "last")
    assert await last.answer == "last"
    assert gate.cancelled == ["running"]
    assert gate.arrived == ["running", "last"]
    assert not running.answer.done()
    assert not waiting.answer.done()
    assert (len(queue), queue.running) == (0, 0)


async def test_one_that_is_cancelled_before_it_could_begin_gives_its_slot_back() -> None:
    gate = GatedHandler(1)
    gate.release("second")
    queue = Dispatcher().queue(gate)
    first, second = put(queue, "first", "second")
    queue.cancel([first])
    assert await second.answer == "second"
    assert gate.arrived == ["second"]


async def test_a_deadline_is_an_error_of_its_own() -> None:
    queue = Dispatcher().queue(GatedHandler(1))
    late = Asked("never", seconds=0.01)
    queue.put([late])
    assert isinstance(await late.answer, CallTimeout)


async def test_each_has_its_own_deadline_whatever_was_sent_before() -> None:
    gate = GatedHandler(4)
    queue = Dispatcher().queue(gate)
    patient, late, later, endless = (
        Asked(str(seconds), seconds=seconds) for seconds in (60, 0.01, 0.02, None)
    )
    queue.put([patient, late, later, endless])
    for request in (late, later):
        answer = await request.answer
        assert isinstance(answer, CallTimeout)
        assert str(answer) == f"no answer within {request.seconds:g} s"
    assert gate.inside == 2
    gate.release("60", "None")
    assert [await patient.answer, await endless.answer] == ["60", "None"]


async def test_a_handler_that_breaks_off_by_itself_has_failed() -> None:
    class Fickle(ModelHandler):
        async def chat(self, messages: Sequence[Message]) -> Completion:
            raise asyncio.CancelledError

    request = Asked("x")
    Dispatcher().queue(Fickle()).put([request])
    assert type(await request.answer) is Unavailable


async def test_what_a_handler_raises_is_the_answer() -> None:
    class Broken(ModelHandler):
        async def chat(self, messages: Sequence[Message]) -> Completion:
            raise TimeoutError("its own")

    request = Asked("x", seconds=5)
    Dispatcher().queue(Broken()).put([request])
    answer = await request.answer
    assert type(answer) is TimeoutError
    assert str(answer) == "its own"


async def test_a_queue_that_may_not_go_now_lets_the_others_pass_and_is_asked_again() -> None:
    gate = GatedHandler(1)
    gate.release("held", "free")
    dispatcher = Dispatcher()
    held_queue, free_queue = dispatcher.queue(gate), dispatcher.queue(gate)
    held = Asked("held", admission="later")
    held_queue.put([held])
    (free,) = put(free_queue, "free")
    assert await free.answer == "free"
    assert not held.answer.done()
    held.admission = "now"
    held_queue.retry()
    assert await held.answer == "held"


async def test_one_that_is_never_admitted_is_dropped() -> None:
    gate = GatedHandler(1)
    gate.release("after")
    queue = Dispatcher().queue(gate)
    refused, after = Asked("refused", admission="not_here"), Asked("after")
    queue.put([refused, after])
    assert await after.answer == "after"
    assert gate.arrived == ["after"]


async def test_a_flood_that_is_refused_has_not_the_event_loop_all_to_itself() -> None:
    asked = 0

    class Refused(Asked):
        def admit(self) -> Admission:
            nonlocal asked
            asked += 1
            return "not_here"

    queue = Dispatcher().queue(GatedHandler(1))
    queue.put([Refused("") for _ in range(1000)])
    seen = [asked]
    while len(queue):
        await run_pending(1)
        seen.append(asked)
    assert max(after - before for before, after in pairwise([0, *seen])) <= 64
    assert asked == 1000


class Batching(ModelHandler):
    """A handler with nothing but plain methods, which must not be called twice at once."""

    batch_size = 4

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.let = threading.Event()
        self._one = threading.Lock()

    def chat(self, messages: Sequence[Message]) -> Completion:
        raise AssertionError("it has a chat_batch")

    def chat_batch(self, message_batches: Sequence[Sequence[Message]]) -> list[BatchItem]:
        assert self._one.acquire(blocking=False), "called twice at once"
        try:
            texts = [messages[0]["content"] for messages in message_batches]
            self.batches.append(texts)
            assert self.let.wait(10)
            return [Completion(text.upper()) for text in texts]
        finally:
            self._one.release()


async def test_what_waits_goes_together() -> None:
    handler = Batching()
    queue = Dispatcher().queue(handler)
    first = put(queue, "a")
    rest = put(queue, *"bcdefg")
    handler.let.set()
    assert [await each.answer for each in (*first, *rest)] == list("ABCDEFG")
    assert handler.batches == [["a"], ["b", "c", "d", "e"], ["f", "g"]]


async def test_a_batch_is_shared_fairly_by_those_that_wait() -> None:
    handler = Batching()
    dispatcher = Dispatcher()
    first, flood, other = (dispatcher.queue(handler) for _ in range(3))
    requests = put(first, "a") + put(flood, *"bcdef") + put(other, *"xyz")
    handler.let.set()
    await asyncio.gather(*(request.answer for request in requests))
    assert handler.batches == [["a"], ["b", "c", "x", "y"], ["d", "e", "z", "f"]]


async def test_a_batch_waits_for_company_where_it_is_told_to() -> None:
    handler = Batching()
    handler.batch_wait = 0.05
    handler.let.set()
    dispatcher = Dispatcher()
    requests = put(dispatcher.queue(handler), "a")
    await run_pending()
    requests += put(dispatcher.queue(handler), "b")
    assert [await each.answer for each in requests] == ["A", "B"]
    assert handler.batches == [["a", "b"]]
    full = put(dispatcher.queue(handler), *"cdef")
    assert [await each.answer for each in full] == list("CDEF")


async def test_one_of_a_batch_is_cancelled_alone() -> None:
    handler = Batching()
    queue = Dispatcher().queue(handler)
    requests = put(queue, "a")
    requests += put(queue, *"bcd")
    handler.let.set()
    queue.cancel([requests[0], requests[2]])
    assert [await requests[index].answer for index in (1, 3)] == ["B", "D"]
    assert not requests[0].answer.done()


async def test_a_batch_with_too_few_answers_is_an_error_for_each() -> None:
    class Short(Batching):
        def chat_batch(self, message_batches: Sequence[Sequence[Message]]) -> list[BatchItem]:
            return []

    requests = put(Dispatcher().queue(Short()), "a", "b")
    answers = [await request.answer for request in requests]
    assert [type(answer) for answer in answers] == [TypeError, TypeError]


@pytest.mark.parametrize("kind", [GatedHandler, Batching])
async def test_a_handler_queue_is_forgotten_with_its_last_queue(kind: type[ModelHandler]) -> None:
    handler = GatedHandler(1) if kind is GatedHandler else Batching()
    dispatcher = Dispatcher()
    queue = dispatcher.queue(handler)
    assert len(dispatcher._handler_queues) == 1  # pyright: ignore[reportPrivateUsage]  # the test looks at private state
    del queue
    assert len(dispatcher._handler_queues) == 0  # pyright: ignore[reportPrivateUsage]  # the test looks at private state


async def test_a_handler_that_does_not_wait_costs_no_task_for_each() -> None:
    tasks = set[object]()

    class AtOnce(ModelHandler):
        async def chat(self, messages: Sequence[Message]) -> Completion:
            tasks.add(asyncio.current_task())
            return Completion(messages[0]["content"])

    handler = AtOnce()
    texts = [str(number) for number in range(100)]  # more than it has slots
    requests = put(Dispatcher().queue(handler), *texts)
    assert [await request.answer for request in requests] == texts
    assert len(tasks) == 1


async def test_one_cancelled_before_a_batch_began_is_not_in_it() -> None:
    handler = Batching()
    handler.let.set()
    queue = Dispatcher().queue(handler)
    first, second = put(queue, "a", "b")
    queue.cancel([first])
    assert await second.answer == "B"
    assert handler.batches == [["b"]]


class Moody(GatedHandler):
    """What a conversation begins with says how it is dealt with."""

    async def chat(self, messages: Sequence[Message]) -> Completion:
        match messages[0]["content"].split():
            case ["at-once", *_]:
                return Completion(messages[0]["content"])
            case ["raises", *_]:
                raise ValueError("as it was told")
            case ["breaks-off", *_]:
                raise asyncio.CancelledError
            case ["stubborn", *_]:
                with contextlib.suppress(asyncio.CancelledError):
                    await super().chat(messages)
                return Completion(messages[0]["content"])
            case _:
                return await super().chat(messages)


_MOODS = st.sampled_from(["at-once", "raises", "breaks-off", "stubborn", "waits"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 1), st.lists(_MOODS, min_size=1, max_size=9)),
        st.tuples(st.just("cancel"), st.integers(0, 40)),
        st.tuples(st.just("let"), st.integers(0, 40)),
        st.tuples(st.just("turns"), st.integers(1, 3)),
    ),
    max_size=25,
)


@given(st.integers(1, 5), _STEPS)
@settings(deadline=None, max_examples=200)
def test_each_request_ends_once_and_gives_its_slot_back(slots: int, steps: list[tuple[Any, ...]]) -> None:
    asyncio.run(_play(slots, steps))


class Play:
    """Two queues of one handler, and what is to become of each request."""

    def __init__(self, slots: int) -> None:
        self.gate = Moody(slots)
        dispatcher = Dispatcher()
        self.queues = [dispatcher.queue(self.gate), dispatcher.queue(self.gate)]
        self.sent: list[tuple[RequestQueue, str, Asked]] = []
        self.dropped = set[Asked]()

    async def step(self, step: tuple[Any, ...]) -> None:
        match step:
            case "put", int(which), moods:
                queue, first = self.queues[which], len(self.sent)
                texts = [f"{mood} {first + place}" for place, mood in enumerate(moods)]
                self.sent += zip([queue] * len(texts), texts, put(queue, *texts), strict=True)
            case "cancel", int(place) if place < len(self.sent):
                queue, _, request = self.sent[place]
                if not request.answer.done():
                    self.dropped.add(request)
                queue.cancel([request])
            case "let", int(place) if place < len(self.sent):
                self.gate.release(self.sent[place][1])
            case "turns", int(count):
                await run_pending(count)
            case _:
                pass

    async def end(self) -> None:
        """Let all through, and look whether each ended as it should."""
        self.gate.release(*(text for _, text, _ in self.sent))
        for _, text, request in self.sent:
            if request not in self.dropped:
                answer = await asyncio.wait_for(request.answer, 10)
                failures = {"raises": ValueError, "breaks-off": Unavailable}
                assert type(answer) is failures.get(text.split()[0], str)
                assert answer == text or not isinstance(answer, str)
        await run_pending()
        assert not any(request.answer.done() for request in self.dropped)
        assert [(len(queue), queue.running) for queue in self.queues] == [(0, 0), (0, 0)]


async def _play(slots: int, steps: list[tuple[Any, ...]]) -> None:
    play = Play(slots)
    for step in steps:
        await play.step(step)
        assert play.gate.inside <= slots
    await play.end()
    last = [f"waits {slots} {place}" for place in range(slots)]
    requests = put(play.queues[0], *last)
    await run_pending()
    assert play.gate.inside == slots, "a slot was lost"
    play.gate.release(*last)
    assert [await request.answer for request in requests] == last
