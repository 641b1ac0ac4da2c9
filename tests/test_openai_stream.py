"""Streams: text as it comes, and what goes wrong on the way, through the real SDK against the fake server."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import warnings
from typing import Any

import pytest
from openai_support import ASKED, SOON, handler_of

from supdist.handlers import (
    BatchItem,
    Completion,
    ContextTooLong,
    HandlerError,
    NoAccess,
    OpenAIHandler,
    Rejected,
    Unavailable,
    Usage,
)
from supdist.tools.testing.fake_openai import (
    Drop,
    Endless,
    FakeOpenAI,
    Malformed,
    Part,
    Refusal,
    Reply,
    Shape,
    Status,
    Stream,
    Text,
)

pytestmark = pytest.mark.usefixtures("bare_environment")


async def streamed(handler: OpenAIHandler) -> tuple[BatchItem, list[str]]:
    """What a chat gives, and the pieces that came before; any exception but ours goes through."""
    pieces: list[str] = []
    try:
        return await handler.chat_stream(ASKED, pieces.append), pieces
    except HandlerError as error:
        return error, pieces


async def streamed_of(*replies: Reply, **options: Any) -> tuple[BatchItem, list[str], int]:
    """The same where the endpoint replies so, and the number of requests."""
    async with FakeOpenAI(replies) as server:
        got, pieces = await streamed(handler_of(server, **options))
    return got, pieces, len(server.requests)


async def broken_by(*parts: Part, **options: Any) -> BatchItem:
    """What comes of a stream with these parts after its first piece, where there is no second attempt."""
    got, pieces, requests = await streamed_of(Stream(["one ", *parts]), **options)
    assert pieces == ["one "]
    assert requests == 1
    return got


# --- what comes back ------------------------------------------------------------------------------


async def test_pieces_are_the_text_with_its_usage_and_end() -> None:
    async with FakeOpenAI([Text("one two\nthree", usage=(70, 8), finish_reason="length")]) as server:
        got, pieces = await streamed(handler_of(server))
    assert pieces == ["one ", "two\n", "three"]
    assert isinstance(got, Completion)
    assert (got.text, got.usage, got.finish_reason) == ("one two\nthree", Usage(70, 8, 1), "length")
    body = {"model": "m", "messages": ASKED, "stream": True, "stream_options": {"include_usage": True}}
    assert [request.body for request in server.requests] == [body]
    assert len(server.ledger) == 1


async def test_a_piece_is_given_before_the_next_is_sent() -> None:
    heard = asyncio.Event()

    class Told(list[str]):
        def append(self, piece: str, /) -> None:
            super().append(piece)
            heard.set()

    # The stream falls silent after its first piece, for longer than the test waits.
    async with FakeOpenAI([Stream(["one ", Endless(pause=60)])]) as server, asyncio.timeout(5):
        chat = asyncio.create_task(handler_of(server).chat_stream(ASKED, Told().append))
        await heard.wait()
        assert not chat.done()
        chat.cancel()
        await asyncio.wait([chat])


async def test_reasoning_and_refusals_are_told_apart_from_the_answer() -> None:
    thoughts: list[Part] = [{"reasoning_content": "h"}, {"reasoning_content": "m", "reasoning": "m"}]
    got, pieces, _ = await streamed_of(Stream([*thoughts, {"content": None, "reasoning": "."}, "yes"]))
    assert isinstance(got, Completion)
    assert (got.text, got.reasoning, pieces) == ("yes", "hm.", ["yes"])
    got, pieces, _ = await streamed_of(Refusal("I will not"))
    assert isinstance(got, Completion)
    assert (got.text, got.finish_reason, "".join(pieces)) == ("I will not", "refusal", "I will not")


async def test_tool_call_without_text_is_rejected() -> None:
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    got, _, _ = await streamed_of(Stream([{"tool_calls": [call]}], finish_reason="tool_calls"))
    assert isinstance(got, Rejected)
    assert "tool call" in str(got)


async def test_usage_that_is_not_sent_is_nothing() -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    async with FakeOpenAI([Stream([Shape(chunk), Malformed(b"[DONE]")])]) as server:
        got, _ = await streamed(handler_of(server))
    assert isinstance(got, Completion)
    assert (got.text, got.usage) == ("x", Usage(0, 0, 1))


async def test_connection_is_used_again_after_a_stream() -> None:
    async with FakeOpenAI(lambda _: Text("one two")) as server, handler_of(server) as handler:
        for _ in range(3):
            await streamed(handler)
    assert server.connections == 1


# --- what goes wrong ------------------------------------------------------------------------------


async def test_stream_that_breaks_is_unavailable() -> None:
    assert isinstance(await broken_by(Drop()), Unavailable)
    assert isinstance(await broken_by(Drop(100)), Unavailable)


async def test_stream_that_ends_without_an_end_is_unavailable() -> None:
    """As one does whose connection just closes, where nothing says how long the body is."""
    got, pieces, _ = await streamed_of(Stream(["one"], finish_reason=None))
    assert isinstance(got, Unavailable)
    assert pieces == ["one"]


async def test_stream_that_breaks_is_begun_again_within_the_attempts() -> None:
    good = Text("one two")
    got, pieces, requests = await streamed_of(Stream(["one ", Drop()]), good, max_retries=1)
    assert isinstance(got, Completion)
    assert (got.text, got.retries, requests) == ("one two", 1, 2)
    assert pieces == ["one ", "one ", "two"]
    got, _, requests = await streamed_of(*[Stream(["one ", Drop()])] * 9, max_retries=2)
    assert isinstance(got, Unavailable)
    assert requests == 3


async def test_one_budget_holds_for_attempts_before_and_after_a_stream_begins() -> None:
    broken, busy = Stream(["one ", Drop()]), Status(503, SOON)
    for later in (busy, broken):
        got, _, requests = await streamed_of(busy, broken, *[later] * 9, max_retries=3)
        assert isinstance(got, Unavailable)
        assert requests == 4


@pytest.mark.timing
async def test_silence_in_a_stream_ends_it() -> None:
    start = time.monotonic()
    got = await broken_by(Endless(pause=60), timeout=0.2)
    assert isinstance(got, Unavailable)
    assert time.monotonic() - start < 5


@pytest.mark.timing
async def test_stream_that_drips_ends_in_twice_the_timeout() -> None:
    start = time.monotonic()
    got = await broken_by(Endless(pause=0.02), timeout=0.2)
    assert isinstance(got, Unavailable)
    assert "in time" in str(got)
    assert time.monotonic() - start < 5


async def test_endless_stream_is_cut_and_not_begun_again() -> None:
    got, _, requests = await streamed_of(Stream(["one ", Endless()]), max_retries=2)
    assert isinstance(got, Unavailable)
    assert "longer than" in str(got)
    assert requests == 1


@pytest.mark.parametrize("body", [b"{", b"<html>", b"\xff\xfe", b"9" * 9999, b"[" * 99_999])
async def test_event_that_is_no_json_is_unavailable(body: bytes) -> None:
    assert isinstance(await broken_by(Malformed(body)), Unavailable)


WRONG_CHUNKS: list[Any] = [
    None,
    1,
    "x",
    [],
    [1],
    {"choices": "x"},
    {"choices": {}},
    {"choices": 1},
    {"choices": [None]},
    {"choices": [[]]},
    {"choices": [{}]},
    {"choices": [{"delta": None}]},
    {"choices": [{"delta": 1}]},
    {"choices": [{"delta": {"content": 1}}]},
    {"choices": [{"delta": {"content": [1]}}]},
    {"choices": [], "usage": "x"},
    {"choices": [], "usage": {"prompt_tokens": "3", "completion_tokens": 1}},
    {"choices": [], "usage": {"prompt_tokens": -3, "completion_tokens": 1}},
]


async def test_events_of_another_shape_are_unavailable() -> None:
    replies = [Stream(["one ", Shape(chunk)], finish_reason=None) for chunk in WRONG_CHUNKS]
    async with FakeOpenAI(replies) as server, handler_of(server) as handler:
        got = [(json.dumps(chunk), (await streamed(handler))[0]) for chunk in WRONG_CHUNKS]
    assert [case for case in got if not isinstance(case[1], Unavailable)] == []


async def test_a_whole_reply_in_place_of_a_stream_is_read() -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}
    got, pieces, requests = await streamed_of(Shape(whole))
    assert isinstance(got, Completion)
    assert (got.text, "".join(pieces), requests) == ("hi", "hi", 1)


async def test_reply_that_is_no_stream_is_unavailable() -> None:
    for reply in (Malformed(b""), Malformed(b"<html>")):
        got, pieces, _ = await streamed_of(reply)
        assert isinstance(got, Unavailable)
        assert pieces == []


async def test_a_page_in_place_of_a_stream_points_to_the_url() -> None:
    got, _, _ = await streamed_of(Malformed(b"<!doctype html><title>Welcome</title>"))
    assert isinstance(got, Unavailable)
    assert "a web page, no OpenAI-compatible reply" in str(got)
    assert "Check base_url: it often ends in /v1" in str(got)
    assert "stream ended" not in str(got)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"type": "InternalServerError", "code": 500}, Unavailable),
        ({"code": 503}, Unavailable),
        ({"code": None}, Unavailable),
        ({"code": "rate_limit_exceeded"}, Unavailable),
        ({"code": 400, "type": "BadRequestError"}, Rejected),
        ({"type": "invalid_request_error", "code": "invalid_prompt"}, Rejected),
        ({"code": "insufficient_quota"}, NoAccess),
        ({"code": "context_length_exceeded"}, ContextTooLong),
        ({"code": 400, "param": "input_tokens"}, ContextTooLong),
        ({"code": 400, "type": "exceed_context_size_error"}, ContextTooLong),
    ],
)
async def test_error_inside_of_a_stream_is_told_apart(
    fields: dict[str, Any], kind: type[HandlerError]
) -> None:
    got = await broken_by(Status(500, message="the reason", fields=fields))
    assert type(got) is kind
    assert "the reason" in str(got)


@pytest.mark.parametrize("code", [400, 401, 503])
async def test_error_in_place_of_a_stream_is_as_without_one(code: int) -> None:
    got, pieces, requests = await streamed_of(*[Status(code, SOON, message="the reason")] * 3, max_retries=2)
    assert isinstance(got, Unavailable if code == 503 else Rejected)
    assert "the reason" in str(got)
    assert (pieces, requests) == ([], 3 if code == 503 else 1)


async def test_what_the_listener_raises_goes_through_and_ends_the_request() -> None:
    def complain(piece: str) -> None:
        raise ValueError(piece)

    async with FakeOpenAI([Stream(["one ", Endless(pause=60)])]) as server, asyncio.timeout(5):
        with pytest.raises(ValueError, match="one "):
            await handler_of(server).chat_stream(ASKED, complain)


async def test_cancelled_stream_is_closed_at_once_and_not_billed() -> None:
    heard = asyncio.Event()

    async with FakeOpenAI([Stream(["one ", Endless(pause=0.01)])]) as server, handler_of(server) as handler:
        async with asyncio.timeout(5):
            chat = asyncio.create_task(handler.chat_stream(ASKED, lambda _: heard.set()))
            await heard.wait()
            chat.cancel()
            await asyncio.wait([chat])
            await server.idle()
    assert chat.cancelled()
    assert server.ledger == []


def test_nothing_of_a_stream_is_left_open() -> None:
    replies: list[Reply] = [
        Text("x"),
        Stream(["one ", Drop()]),
        Stream(["one ", Malformed(b"{")]),
        Stream(["one ", Status(500)]),
        Stream(["one ", Endless(limit=2**20)]),
        Stream(["one ", Endless(pause=60)]),
        Status(500),
    ]

    async def run() -> None:
        async with FakeOpenAI(replies) as server:
            handler = handler_of(server, timeout=0.1)
            async with handler:
                await asyncio.gather(*(streamed(handler) for _ in replies))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(run())
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
