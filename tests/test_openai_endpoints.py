"""Several endpoints and rate limits: which endpoint is asked, how often, and what waiting costs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from openai_support import ASKED, SOON, handler_of, outcome
from support import FakeClock

from supdist.handlers import Completion, Message, OpenAIHandler, Rejected, Unavailable
from supdist.handlers.endpoints import Endpoint, Endpoints
from supdist.tools.testing.fake_openai import Drop, FakeOpenAI, Reply, Request, Script, Status, Stream, Text

pytestmark = pytest.mark.usefixtures("bare_environment")


# --- who is asked next, by itself -----------------------------------------------------------------


def fail(endpoints: Endpoints, endpoint: Endpoint, retry_after: float | None = None) -> None:
    with pytest.raises(Unavailable), endpoints.track_request(endpoint):
        raise Unavailable("gone", retry_after=retry_after)


def rest_after(endpoints: Endpoints, endpoint: Endpoint, clock: FakeClock) -> float:
    clock.now += 1000
    fail(endpoints, endpoint)
    return endpoint.paused_until - clock.now


def test_least_in_flight_is_chosen_and_then_the_least_asked() -> None:
    endpoints = Endpoints(["a", "b", "c"])
    a, b, c = endpoints.all
    a.in_flight, b.in_flight, c.in_flight = 2, 1, 1
    b.request_count = 5
    assert endpoints.choose(()) == (c, False)
    assert endpoints.choose([c]) == (b, False)
    assert endpoints.choose([b, c]) == (a, True)


def test_failed_endpoint_rests_longer_each_time_until_it_answers() -> None:
    clock = FakeClock(0.0)
    endpoints = Endpoints(["a"], clock=clock)
    [a] = endpoints.all
    assert [rest_after(endpoints, a, clock) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    with endpoints.track_request(a):
        pass
    assert rest_after(endpoints, a, clock) == 1


def test_rest_is_as_long_as_the_endpoint_asks() -> None:
    clock = FakeClock(0.0)
    endpoints = Endpoints(["a"], clock=clock)
    fail(endpoints, endpoints.all[0], retry_after=30)
    assert endpoints.all[0].paused_until == 30


def test_failures_of_requests_that_were_on_their_way_together_count_once() -> None:
    clock = FakeClock(0.0)
    endpoints = Endpoints(["a"], clock=clock)
    [a] = endpoints.all
    for now in (5, 6, 7):
        a.record_failure(asked_at=0, now=now)
    assert a.paused_until == 6
    a.record_failure(asked_at=6, now=7)
    assert a.paused_until == 9


def test_resting_endpoint_is_tried_again_by_one_request_at_a_time() -> None:
    clock = FakeClock(0.0)
    endpoints = Endpoints(["a", "b"], clock=clock)
    a, b = endpoints.all
    fail(endpoints, a)
    b.in_flight = 7
    assert endpoints.choose(()) == (b, True)
    clock.now = 1
    assert endpoints.choose(()) == (a, False)
    with endpoints.track_request(a):
        assert endpoints.choose(()) == (b, True)
    with endpoints.track_request(a):
        assert endpoints.choose(()) == (a, False)


def test_where_all_rest_the_one_that_is_soonest_back_is_asked() -> None:
    clock = FakeClock(0.0)
    endpoints = Endpoints(["a", "b"], clock=clock)
    a, b = endpoints.all
    fail(endpoints, a, retry_after=9)
    fail(endpoints, b, retry_after=3)
    assert endpoints.choose(()) == (b, True)
    assert endpoints.choose([b]) == (a, True)


def test_refusal_is_an_answer_and_cancellation_says_nothing() -> None:
    clock = FakeClock(0.0)
    endpoints = Endpoints(["a"], clock=clock)
    [a] = endpoints.all
    fail(endpoints, a)
    with pytest.raises(asyncio.CancelledError), endpoints.track_request(a):
        raise asyncio.CancelledError
    assert (a.in_flight, a.ready(0.5)) == (0, False)
    with pytest.raises(Rejected), endpoints.track_request(a):
        raise Rejected("no")
    assert (a.in_flight, a.ready(0.5)) == (0, True)


# --- several endpoints over HTTP ------------------------------------------------------------------


def both(first: FakeOpenAI, second: FakeOpenAI, **options: Any) -> OpenAIHandler:
    return handler_of(first, base_url=[first.base_url, second.base_url], **options)


def busy(_: Request) -> Reply:
    return Status(503, SOON)


def broken(_: Request) -> Reply:
    return Stream(["one ", Drop()])


def well(_: Request) -> Reply:
    return Text("x")


async def test_requests_go_where_the_fewest_are_in_flight() -> None:
    release = asyncio.Event()
    all_in = asyncio.Barrier(9)

    async def hold(_: Request) -> Reply:
        await all_in.wait()
        await release.wait()
        return Text("x")

    async with (
        FakeOpenAI(hold) as first,
        FakeOpenAI(hold) as second,
        both(first, second) as handler,
        asyncio.timeout(20),
        asyncio.TaskGroup() as group,
    ):
        for _ in range(8):
            group.create_task(handler.chat(ASKED))
        await all_in.wait()
        release.set()
    assert [len(first.requests), len(second.requests)] == [4, 4]


async def test_requests_one_after_another_are_shared_too() -> None:
    async with FakeOpenAI(well) as first, FakeOpenAI(well) as second, both(first, second) as handler:
        for _ in range(6):
            await handler.chat(ASKED)
    assert [len(first.requests), len(second.requests)] == [3, 3]


async def test_endpoint_that_is_gone_costs_one_attempt() -> None:
    async with FakeOpenAI([]) as gone:
        pass
    async with FakeOpenAI(well) as second:
        assert (await both(gone, second, max_retries=2).chat(ASKED)).retries == 1


async def test_endpoint_that_asks_to_be_left_alone_is() -> None:
    async with (
        FakeOpenAI([Status(503, {"Retry-After": "60"})]) as first,
        FakeOpenAI(well) as second,
        both(first, second, max_retries=2) as handler,
    ):
        got = [await handler.chat(ASKED) for _ in range(3)]
    assert [each.retries for each in got] == [1, 0, 0]
    assert [len(first.requests), len(second.requests)] == [1, 3]


@pytest.mark.parametrize("reply", [Status(500), Status(429, {"Retry-After": "1000"}), Drop(), Drop(50)])
async def test_what_is_a_matter_of_availability_is_asked_elsewhere(reply: Reply) -> None:
    async with FakeOpenAI([reply]) as first, FakeOpenAI(well) as second:
        got = await outcome(both(first, second))
    assert isinstance(got, Completion)
    assert (got.text, got.retries) == ("x", 1)


async def test_broken_stream_is_begun_again_elsewhere() -> None:
    async with FakeOpenAI([Stream(["one ", Drop()])]) as first, FakeOpenAI(well) as second:
        got = await both(first, second).chat_stream(ASKED, lambda _: None)
    assert (got.text, got.retries) == ("x", 1)


@pytest.mark.parametrize("code", [400, 401, 413])
async def test_what_is_no_matter_of_availability_is_asked_nowhere_else(code: int) -> None:
    async with FakeOpenAI([Status(code)]) as first, FakeOpenAI(well) as second:
        got = await outcome(both(first, second, max_retries=2))
    assert not isinstance(got, Completion | Unavailable)
    assert second.requests == []


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("script", [busy, broken])
async def test_attempts_are_bounded_by_retries_and_endpoints(
    count: int, retries: int, script: Script
) -> None:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeOpenAI(script)) for _ in range(count)]
        urls = [server.base_url for server in servers]
        handler = await stack.enter_async_context(
            OpenAIHandler("m", base_url=urls, max_retries=retries, timeout=10)
        )
        with pytest.raises(Unavailable):
            await handler.chat_stream(ASKED, lambda _: None)
        assert sum(len(server.requests) for server in servers) == retries + count


async def test_where_all_rest_one_is_asked_still() -> None:
    async with (
        FakeOpenAI([Status(503, {"Retry-After": "60", "X-Should-Retry": "false"})]) as first,
        FakeOpenAI([Status(503, {"Retry-After": "30", "X-Should-Retry": "false"}), Text("x")]) as second,
        both(first, second) as handler,
    ):
        assert isinstance(await outcome(handler), Unavailable)
        assert isinstance(await outcome(handler), Completion)
    assert [len(first.requests), len(second.requests)] == [1, 2]


# --- limits ---------------------------------------------------------------------------------------


def asked_of(server: FakeOpenAI) -> int:
    return sum(request.model == "m" for request in server.requests)


async def probe(server: FakeOpenAI, times: int = 5) -> None:
    """Whole exchanges, in which one request too many would have come."""
    for _ in range(times):
        await OpenAIHandler("probe", base_url=server.base_url).chat(ASKED)


async def test_requests_a_minute_count_every_attempt_in_every_loop() -> None:
    replies = iter([Status(503, SOON), Text("x")])

    def script(request: Request) -> Reply:
        return Text("x") if request.model == "probe" else next(replies)

    async with FakeOpenAI(script) as server, asyncio.timeout(20):
        handler = handler_of(server, requests_per_minute=2, max_retries=1)
        assert (await asyncio.to_thread(asyncio.run, as_coroutine(handler))).retries == 1
        chat = asyncio.create_task(handler.chat(ASKED))
        await probe(server)
        assert not chat.done()
        chat.cancel()
        await asyncio.wait([chat])
    assert chat.cancelled()
    assert asked_of(server) == 2


async def as_coroutine(handler: OpenAIHandler) -> Completion:
    return await handler.chat(ASKED)


async def test_tokens_a_minute_are_estimated_and_then_corrected() -> None:
    """By the estimate there is room for one; the endpoint says that it took ten of a thousand."""
    async with FakeOpenAI(lambda _: Text("x", usage=(5, 5))) as server, asyncio.timeout(10):
        handler = handler_of(server, tokens_per_minute=1000, max_tokens=900)
        for _ in range(5):
            await handler.chat(ASKED)
    assert len(server.requests) == 5


async def test_tokens_a_minute_hold_back_what_does_not_fit() -> None:
    long: list[Message] = [{"role": "user", "content": "word " * 700}]
    async with FakeOpenAI(lambda _: Text("x", usage=(700, 1))) as server, asyncio.timeout(20):
        handler = handler_of(server, tokens_per_minute=1000)
        await handler.chat(long)
        chat = asyncio.create_task(handler.chat(long))
        await probe(server)
        assert not chat.done()
        chat.cancel()
        await asyncio.wait([chat])
        await handler.chat(ASKED)  # a short one fits, and does not wait behind the one that was cancelled
    assert asked_of(server) == 2


async def test_time_waited_for_a_slot_is_told() -> None:
    async with (
        FakeOpenAI([Text("x", delay=0.3), Text("x")]) as server,
        handler_of(server, max_concurrency=1) as handler,
    ):
        first, second = await asyncio.gather(handler.chat(ASKED), handler.chat(ASKED))
    assert first.queued < 0.3
    assert second.queued >= 0.3


async def test_cancelled_request_is_closed_at_once_frees_its_slot_and_is_not_billed() -> None:
    arrived = asyncio.Event()
    replies = iter([Text("x", delay=60), Text("y")])

    def script(_: Request) -> Reply:
        arrived.set()
        return next(replies)

    async with (
        FakeOpenAI(script) as server,
        handler_of(server, max_concurrency=1) as handler,
        asyncio.timeout(10),
    ):
        chats = [asyncio.create_task(handler.chat(ASKED)) for _ in range(2)]
        await arrived.wait()
        chats[0].cancel()
        assert (await chats[1]).text == "y"
        await server.idle()
    assert chats[0].cancelled()
    assert [len(server.requests), len(server.ledger)] == [2, 1]
