"""What every handler of a provider keeps to, over a server that speaks the provider's protocol."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import pytest
from native_support import ASKED, BACKENDS, KEY, Backend, as_whole, outcome
from support import SMALL_CONFIG, block

from supdist.engine import arun
from supdist.handlers import (
    Completion,
    HandlerError,
    NoAccess,
    OnlyToolCall,
    Rejected,
    ScriptedHandler,
    Unavailable,
    Unreachable,
    Usage,
)
from supdist.tools.testing.fake_openai import (
    Drop,
    Endless,
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


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_answer_has_its_text_usage_and_end(backend: Backend, stream: bool) -> None:
    pieces: list[str] = []
    async with backend.server([Text("It is a test.", usage=(11, 5))]) as server:
        got = await outcome(backend.handler_of(server), on_text=pieces.append if stream else None)
    assert isinstance(got, Completion)
    assert (got.text, got.finish_reason, got.reasoning) == ("It is a test.", "stop", "")
    assert (got.usage.input_tokens, got.usage.output_tokens, got.usage.calls) == (11, 5, 1)
    assert "".join(pieces) == ("It is a test." if stream else "")
    assert len(pieces) > 1 or not stream


async def test_thoughts_are_no_text(backend: Backend) -> None:
    pieces: list[str] = []
    reply = Stream([backend.thought("Is it "), backend.thought("42?"), "4", "1"])
    async with backend.server([reply]) as server:
        got = await outcome(backend.handler_of(server), on_text=pieces.append)
    assert isinstance(got, Completion)
    assert (got.text, got.reasoning, pieces) == ("41", "Is it 42?", ["4", "1"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_the_end_says_why(backend: Backend, stream: bool) -> None:
    replies = [Text("cut", backend.length), Text("x", "something_new")]
    if not stream:
        replies.append(Text("x"))
    async with backend.server(replies) as server:
        handler = backend.handler_of(server)
        sink: list[str] | None = [] if stream else None
        got = [await outcome(handler, on_text=None if sink is None else sink.append) for _ in replies]
    finish = [each.finish_reason for each in got if isinstance(each, Completion)]
    assert finish == ["length", "other", "stop"][: len(replies)]


async def test_a_refusal_is_told_apart(backend: Backend) -> None:
    async with backend.server([Refusal("I will not.")]) as server:
        got = await outcome(backend.handler_of(server))
    assert isinstance(got, Completion)
    assert (got.text, got.finish_reason) == ("I will not.", "refusal")


async def test_calls_of_tools_refusals_and_empty_replies_are_told_apart(backend: Backend) -> None:
    replies = {
        "a call": Stream([backend.tool], backend.called),
        "thoughts and a call": Stream([backend.thought("hm"), backend.tool], backend.called),
        "blanks and a call": Stream(["\n\n", backend.tool], backend.called),
        "text and a call": Stream(["I look.", backend.tool], backend.called),
        "cut text and a call": Stream(["I lo", backend.tool], backend.length),
        "refused": Refusal("I will not."),
        "empty": Text(""),
        "only thoughts": Stream([backend.thought("hm")]),
    }
    found: dict[str, tuple[bool, str, str]] = {}
    async with backend.server(list(replies.values())) as server:
        for name in replies:
            got = await outcome(backend.handler_of(server), on_text=list[str]().append)
            only_call = isinstance(got, OnlyToolCall)
            reply = got.completion if isinstance(got, OnlyToolCall) else got
            assert isinstance(reply, Completion)
            assert reply.usage.calls == 1
            found[name] = only_call, reply.text.strip(), reply.finish_reason
    assert found == {
        "a call": (True, "", "tool_call"),
        "thoughts and a call": (True, "", "tool_call"),
        "blanks and a call": (True, "", "tool_call"),
        "text and a call": (False, "I look.", "tool_call"),
        "cut text and a call": (False, "I lo", "length"),
        "refused": (False, "I will not.", "refusal"),
        "empty": (False, "", "stop"),
        "only thoughts": (False, "", "stop"),
    }


async def test_the_supervisor_is_told_what_its_reply_lacks(backend: Backend) -> None:
    replies = [
        Stream([backend.tool], backend.called),
        Stream(["I look.", backend.tool], backend.called),
        Refusal("I will not."),
        Text(""),
        Stream([backend.thought("hm")]),
        Text("```repl\nFINAL('done')\n```"),
    ]
    async with backend.server(replies) as server:
        supervisor = backend.handler_of(server)
        result = await arun(query="q", context="c", supervisor=supervisor, worker=None, sandbox=SMALL_CONFIG)
        # The note stands in the last message of the next request, in whatever form.
        told = [json.dumps(list(request.body.values()))[-3_000:] for request in server.requests[1:]]
    assert (result.answer, result.supervisor_usage.calls) == ("done", 6)
    words = [
        "You called a tool",
        "You called a tool",
        "You declined",
        "Your message was empty",
        "held only thoughts",
    ]
    for text, said in zip(told, words, strict=True):
        assert [each for each in set(words) if text.rfind(each) == max(map(text.rfind, words))] == [said]


async def test_a_workers_reply_without_text_says_why_and_one_with_text_is_the_answer(
    backend: Backend,
) -> None:
    replies = [
        Stream([backend.tool], backend.called),
        Stream([backend.thought("hm")], backend.length),
        Refusal("I will not."),
        Stream(["41", backend.tool], backend.called),
    ]
    code = (
        "said = []\nfor _ in range(4):\n    try: said.append(worker('x'))\n"
        "    except WorkerError as error: said.append(error.code + ': ' + error.message)\nFINAL(said)"
    )
    async with backend.server([as_whole(each, backend) for each in replies]) as server:
        worker = backend.handler_of(server, max_concurrency=1, max_tokens=64)
        result = await arun(
            query="q",
            context="c",
            supervisor=ScriptedHandler([block(code)]),
            worker=worker,
            sandbox=SMALL_CONFIG,
        )
    tool, cut, refused, text = json.loads(result.answer or "[]")
    assert tool.startswith("refused: the worker called a tool")
    assert cut.startswith("cut_off: the worker's answer was cut at max_tokens 64")
    assert refused == "refused: the worker refused to answer"
    assert text == "41"
    assert dict(result.failed_calls) == {"refusal": 2, "cut_off": 1}


@pytest.mark.parametrize(
    ("code", "kind", "requests"),
    [
        (400, Rejected, 1),
        (401, NoAccess, 1),
        (402, NoAccess, 1),
        (404, NoAccess, 1),
        (429, Unavailable, 3),
        (500, Unavailable, 3),
        (503, Unavailable, 3),
        (529, Unavailable, 3),
    ],
)
async def test_a_status_is_an_error_and_only_what_may_pass_is_tried_again(
    backend: Backend, code: int, kind: type[HandlerError], requests: int
) -> None:
    async with backend.server([Status(code, {"retry-after-ms": "1", "retry-after": "0.001"})] * 9) as server:
        got = await outcome(backend.handler_of(server, max_retries=2))
    assert isinstance(got, kind)
    assert str(code) in str(got)
    assert len(server.requests) == requests


async def test_an_attempt_that_fails_is_counted(backend: Backend) -> None:
    headers = {"retry-after-ms": "1", "retry-after": "0.001"}
    async with backend.server([Status(429, headers), Status(503, headers), Text("x")]) as server:
        got = await outcome(backend.handler_of(server, max_retries=2))
    assert isinstance(got, Completion)
    assert (got.text, got.retries) == ("x", 2)


@pytest.mark.parametrize(
    "reply",
    [Malformed(b"{"), Malformed(b"[]"), Malformed(b"null"), Malformed(b'"text"'), Malformed(b"[" * 100_000),
     Malformed(b"\xff\xfe"), Malformed(b""), Shape({}), Shape([1]), Drop(0), Drop(10)],
    ids=lambda reply: repr(reply)[:30],
)  # fmt: skip
async def test_what_is_no_reply_is_an_error_of_ours(backend: Backend, reply: Reply) -> None:
    async with backend.server([reply] * 3) as server:
        assert isinstance(await outcome(backend.handler_of(server)), Unavailable)


@pytest.mark.parametrize(
    "part",
    [Drop(), Malformed(b"{"), Malformed(b"[" * 100_000), Status(529), Status(500)],
    ids=lambda reply: repr(reply)[:30],
)  # fmt: skip
async def test_a_stream_that_breaks_is_an_error_of_ours(backend: Backend, part: Part) -> None:
    got: list[str] = []
    async with backend.server([Stream(["begun", part])] * 3) as server:
        assert isinstance(await outcome(backend.handler_of(server), on_text=got.append), Unavailable)
    assert got == ["begun"]


async def test_a_stream_that_breaks_begins_again(backend: Backend) -> None:
    async with backend.server([Stream(["begun", Drop()]), Text("whole")]) as server:
        got = await outcome(backend.handler_of(server, max_retries=1), on_text=list[str]().append)
    assert isinstance(got, Completion)
    assert (got.text, got.retries) == ("whole", 1)


@pytest.mark.parametrize("reply", [Endless(), Stream(["a", Endless()])], ids=["whole", "stream"])
async def test_a_reply_without_an_end_is_bounded(backend: Backend, reply: Reply) -> None:
    sink: list[str] | None = [] if isinstance(reply, Stream) else None
    async with backend.server([reply] * 3) as server:
        handler = backend.handler_of(server, max_retries=2)
        got = await outcome(handler, on_text=None if sink is None else sink.append)
    assert isinstance(got, Unavailable)
    # It is not tried again.
    assert len(server.requests) == 1


async def test_a_silent_server_is_left_after_the_timeout(backend: Backend) -> None:
    async with backend.server([Text("late", delay=60)]) as server:
        start = time.monotonic()
        got = await outcome(backend.handler_of(server, timeout=0.3))
    assert isinstance(got, Unavailable)
    assert got.reason == "timeout"
    assert time.monotonic() - start < 30


async def test_no_connection_is_unreachable_and_says_where(backend: Backend) -> None:
    async with backend.server([]) as server:
        url = server.base_url
    got = await outcome(backend.handler("m", base_url=url, api_key=KEY, max_retries=0))
    assert isinstance(got, Unreachable)
    assert url.split("/")[2] in str(got)
    assert "Connection refused" in str(got)


async def test_a_cancelled_call_ends_its_request(backend: Backend) -> None:
    async with backend.server([Text("late", delay=60)]) as server:
        task = asyncio.ensure_future(outcome(backend.handler_of(server)))
        while not server.requests:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.idle()


async def test_requests_at_once_are_bounded(backend: Backend) -> None:
    running, most = 0, 0

    async def slow(request: object) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        return Text("x")

    async with backend.server(slow) as server:
        handler = backend.handler_of(server, max_concurrency=2)
        async with handler:
            got = await asyncio.gather(*[outcome(handler) for _ in range(8)])
    assert all(isinstance(each, Completion) for each in got)
    assert most <= 2


async def test_the_key_is_in_no_repr_log_or_message(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with backend.server([Text("x"), Status(401, message=f"wrong key {KEY}")]) as server:
        handler = backend.handler_of(server)
        await outcome(handler)
        error = await outcome(handler)
    shown = [repr(handler), str(handler.identity()), repr(error), str(error)]
    assert not any(KEY in text for text in [*shown, caplog.text])
    assert isinstance(error, NoAccess)


async def test_texts_of_any_kind_and_length_arrive(backend: Backend) -> None:
    text = 'quotes " \\ \x00 \u2028 é 漢 🎉\n' * 20_000
    async with backend.server([Text("x")]) as server:
        assert isinstance(
            await outcome(backend.handler_of(server), [ASKED[0], {"role": "user", "content": text}]),
            Completion,
        )
    assert json.dumps(text) in json.dumps(server.requests[0].body)


async def test_half_a_surrogate_pair_is_rejected(backend: Backend) -> None:
    async with backend.server([Text("x")] * 2) as server:
        for text in ("\ud800", "\ud800" + "x" * 100_000):
            got = await outcome(backend.handler_of(server), [{"role": "user", "content": text}])
            assert isinstance(got, Rejected)


def test_usages_add_up() -> None:
    whole = Usage(10, 5, 1, cache_read_tokens=4, reasoning_tokens=2) + Usage(1, 1, 1)
    assert whole == Usage(11, 6, 2, cache_read_tokens=4, cache_write_tokens=None, reasoning_tokens=2)
    with pytest.raises(ValueError, match="negative"):
        Usage(1, 1, 1, cache_write_tokens=-1)


async def test_a_function_that_returns_no_reply_is_told_what_to_return() -> None:
    handler = ScriptedHandler(len)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # wrong on purpose
    with pytest.raises(TypeError, match="the function returned a int as a reply; give a text"):
        await handler.chat([{"role": "user", "content": "q"}])
