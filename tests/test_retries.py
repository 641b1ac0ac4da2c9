"""A request that is sent again is reported, by every handler that waits, to the run that waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from native_support import ASKED, BACKENDS, Backend, outcome
from support import SMALL_CONFIG, block, upper_worker

from supdist.engine import arun
from supdist.engine.event_sink import EventQueue
from supdist.engine.events import Event, Metrics, Retrying
from supdist.handlers import (
    BatchItem,
    Completion,
    HandlerError,
    Message,
    ModelHandler,
    OpenAIHandler,
    Price,
    Retry,
    ScriptedHandler,
    report_retry,
)
from supdist.handlers.retries import listening
from supdist.tools.testing.fake_openai import Drop, FakeOpenAI, Status, Text

pytestmark = pytest.mark.anyio

RATE_LIMIT = Status(429, {"retry-after": "0.05", "retry-after-ms": "50"})


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_handler_reports_each_wait_before_it(backend: Backend, streamed: bool) -> None:
    told: list[Retry] = []
    async with backend.server([RATE_LIMIT, RATE_LIMIT, Text("hi")]) as server:
        handler = backend.handler_of(server, max_retries=3)
        with listening(told.append):
            answer = await outcome(handler, on_text=(lambda _: None) if streamed else None)
    assert isinstance(answer, Completion)
    assert [(each.reason, each.attempt, each.attempts) for each in told] == [
        ("rate_limit", 2, 4),
        ("rate_limit", 3, 4),
    ]
    assert all(0 < each.seconds <= 8 for each in told)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
async def test_the_reason_is_the_failure_of_that_attempt(backend: Backend) -> None:
    told: list[Retry] = []
    async with backend.server([Status(504, {"retry-after-ms": "1"}), Status(503), Text("hi")]) as server:
        with listening(told.append):
            await outcome(backend.handler_of(server, max_retries=2))
        handler = backend.handler_of(server, max_retries=1)
    # Nobody listens there any more.
    with listening(told.append):
        await outcome(handler)
    assert [each.reason for each in told] == ["timeout", "unavailable", "unreachable"]


async def test_the_first_attempt_and_the_last_failure_report_nothing() -> None:
    told: list[Retry] = []
    async with FakeOpenAI([Text("hi"), Status(429)]) as server:
        handler = OpenAIHandler("m", base_url=server.base_url, max_retries=0)
        with listening(told.append):
            assert isinstance(await outcome(handler), Completion)
            assert isinstance(await outcome(handler), HandlerError)
    assert told == []


async def test_another_endpoint_is_asked_at_once_and_that_is_reported() -> None:
    told: list[Retry] = []
    async with FakeOpenAI(lambda _: Drop()) as broken, FakeOpenAI(lambda _: Text("hi")) as good:
        handler = OpenAIHandler("m", base_url=[broken.base_url, good.base_url], max_retries=2)
        with listening(told.append):
            for _ in range(2):
                await outcome(handler)
        failed = len(broken.requests)
    assert failed
    assert told == [Retry("unavailable", 0.0, 2, 4)] * failed


class InAThread(ModelHandler):
    """A user's handler with an event loop of its own for each call."""

    def chat(self, messages: Sequence[Message]) -> Completion:
        async def ask() -> None:
            report_retry(Retry("rate_limit", 1.0, 2, 3))

        asyncio.run(ask())
        report_retry(Retry("rate_limit", 2.0, 3, 3))
        return Completion("x")


class InBatches(InAThread):
    def chat_batch(self, message_batches: Sequence[Sequence[Message]]) -> Sequence[BatchItem]:
        return [self.chat(each) for each in message_batches]


async def run_with(worker: ModelHandler, code: str, **options: Any) -> list[Event]:
    told: list[Event] = []
    loop = asyncio.get_running_loop()

    def on_event(event: Event) -> None:
        assert asyncio.get_running_loop() is loop
        told.append(event)

    supervisor = options.pop("supervisor", None) or ScriptedHandler([block(code)])
    options |= {"query": "q", "context": "c", "sandbox": SMALL_CONFIG, "on_event": on_event}
    await arun(supervisor=supervisor, worker=worker, **options)
    return told


def retries(told: Sequence[Event]) -> list[Retrying]:
    return [event for event in told if isinstance(event, Retrying)]


@pytest.mark.parametrize("worker", [InAThread(), InBatches()], ids=["chat", "chat_batch"])
async def test_a_plain_handler_may_report_from_its_thread(worker: ModelHandler) -> None:
    told = await run_with(worker, "FINAL(worker('a'))")
    assert retries(told) == [
        Retrying("worker", "rate_limit", 1.0, 2, 3),
        Retrying("worker", "rate_limit", 2.0, 3, 3),
    ]


async def test_a_run_has_its_retries_as_events_and_in_logging(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "supdist")
    async with (
        FakeOpenAI([RATE_LIMIT, Text(block("FINAL(worker('a'))"))]) as first,
        FakeOpenAI([RATE_LIMIT, Text("A")]) as second,
    ):
        supervisor = OpenAIHandler("m", base_url=first.base_url, max_retries=1)
        worker = OpenAIHandler("m", base_url=second.base_url, max_retries=2)
        told = retries(await run_with(worker, "", supervisor=supervisor))
    assert [(each.role, each.reason, each.attempt, each.attempts) for each in told] == [
        ("supervisor", "rate_limit", 2, 2),
        ("worker", "rate_limit", 2, 3),
    ]
    assert "supervisor: rate_limit, again in 0." in caplog.text


async def test_metrics_name_dollars_of_each_model_failures_and_what_is_left() -> None:
    class Priced(ScriptedHandler):
        price = Price(0.0, 1e6)

    told = await run_with(
        upper_worker(),
        "",
        supervisor=Priced([block("worker('a'); FINAL('a')")]),
        max_cost_usd=1e9,
        max_seconds=1e6,
    )
    last = [event for event in told if isinstance(event, Metrics)][-1]
    assert last.cost_usd == last.supervisor_cost_usd
    assert last.supervisor_cost_usd
    assert last.worker_cost_usd == 0
    assert last.left is not None
    assert (last.left.worker_calls, last.left.tokens) == (None, None)
    assert last.left.dollars == pytest.approx(1e9 - last.supervisor_cost_usd)
    assert last.left.seconds is not None
    unlimited = await run_with(
        ScriptedHandler([HandlerError("x"), "A"]), "worker_batch(['a', 'b'], return_errors=True); FINAL(1)"
    )
    last = [event for event in unlimited if isinstance(event, Metrics)][-1]
    assert (last.failed, last.failed_calls, last.left) == (1, {"rejected": 1}, None)


async def test_of_retries_and_metrics_only_the_newest_wait_for_a_slow_reader() -> None:
    queue = EventQueue()
    for number in range(2, 100):
        queue.put(Metrics(done=number))
        queue.put(Retrying("worker", "timeout", 1.0, number, 99))
        queue.put(Retrying("supervisor", "timeout", 1.0, number, 99))
    queue.close()
    assert [await queue.get() for _ in range(4)] == [
        Metrics(done=99),
        Retrying("worker", "timeout", 1.0, 99, 99),
        Retrying("supervisor", "timeout", 1.0, 99, 99),
        None,
    ]


def test_a_report_without_a_listener_or_a_loop_does_nothing() -> None:
    report_retry(Retry("timeout", 1.0, 2, 3))
    assert ASKED


async def test_a_run_whose_time_ends_in_such_a_wait_says_so() -> None:
    async with FakeOpenAI([Status(429, {"retry-after": "50"})] * 3) as server:
        supervisor = OpenAIHandler("m", base_url=server.base_url, api_key="k")
        result = await arun(
            query="q", context="c", supervisor=supervisor, worker=None, sandbox=SMALL_CONFIG,
            max_seconds=0.5, final_seconds=0.5,
        )  # fmt: skip
    assert (result.answer, result.stop_reason) == (None, "timeout")
    assert result.failure is not None
    assert "no reply before the time was up (rate-limited: the next attempt was 50 s later)" in result.failure
