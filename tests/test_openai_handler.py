"""The handler of real endpoints, over HTTP and through the real SDK, against the fake server that ships."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import openai._exceptions
import pytest
from supdist.handlers import (
    BatchItem,
    Completion,
    ContextTooLong,
    HandlerError,
    Message,
    OpenAIHandler,
    Rejected,
    Unavailable,
    Usage,
)
from supdist.handlers.openai import translate
from supdist.tools.fake_openai import (
    Drop,
    Endless,
    FakeOpenAI,
    Malformed,
    Refusal,
    Reply,
    Request,
    Shape,
    Status,
    Text,
    read_replies,
)

ASKED: list[Message] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is it"}]
SOON = {"retry-after-ms": "1"}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    for name in os.environ:
        if name.startswith(("OPENAI_", "TOGETHER_", "SSL_CERT_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # No certificate is needed here, and the machine's take 50 ms to load for every client.
    monkeypatch.setenv("SSL_CERT_DIR", str(Path(__file__).parent))


def handler_of(server: FakeOpenAI, **options: Any) -> OpenAIHandler:
    standard: dict[str, Any] = {"base_url": server.base_url, "max_retries": 0, "timeout": 10.0}
    return OpenAIHandler("m", **(standard | options))


async def outcome(handler: OpenAIHandler, messages: Sequence[Message] = ASKED) -> BatchItem:
    """What a chat gives; any exception but ours goes through, and fails the test."""
    try:
        return await handler.chat(messages)
    except HandlerError as error:
        return error


async def outcome_of(*replies: Reply, **options: Any) -> tuple[BatchItem, int]:
    """What a chat gives where the endpoint replies so, and the number of requests that it took."""
    async with FakeOpenAI(replies) as server:
        return await outcome(handler_of(server, **options)), len(server.requests)


def completion(**changes: Any) -> Shape:
    """A good completion, with fields of its JSON replaced."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return Shape(whole | {"usage": {"prompt_tokens": 3, "completion_tokens": 4}} | changes)


# --- what is sent, and what comes back -------------------------------------------------------------------------


async def test_answer_and_usage() -> None:
    assert await outcome_of(Text("four words long, this")) == (
        Completion("four words long, this", Usage(5, 4, 1)),
        1,
    )
    assert await outcome_of(Text("x", usage=(70, 8))) == (Completion("x", Usage(70, 8, 1)), 1)


@pytest.mark.parametrize(
    ("reply", "finish"),
    [
        (Text("x"), "stop"),
        (Text("x", finish_reason="length"), "length"),
        (Text("x", finish_reason="content_filter"), "refusal"),
        (Refusal("x"), "refusal"),
        (Text("x", finish_reason="tool_calls"), "other"),
    ],
)
async def test_finish_reason_is_kept(reply: Reply, finish: str) -> None:
    got, _ = await outcome_of(reply)
    assert isinstance(got, Completion)
    assert (got.text, got.finish_reason) == ("x", finish)


async def test_messages_and_sampling_are_sent_as_given() -> None:
    async with FakeOpenAI([Text("x"), Text("x")]) as server:
        await handler_of(server).chat(ASKED)
        sampling: dict[str, Any] = {"temperature": 0.25, "max_tokens": 7}
        await handler_of(server, **sampling, extra_body={"top_k": 3}).chat(ASKED)
    plain, sampled = (request.body for request in server.requests)
    assert plain == {"model": "m", "messages": ASKED}
    assert sampled == plain | sampling | {"top_k": 3}


async def test_batch_keeps_order_and_errors_in_place() -> None:
    def script(request: Request) -> Reply:
        text = request.body["messages"][-1]["content"]
        return Status(400) if text == "bad" else Text(text.upper())

    async with FakeOpenAI(script) as server:
        batch: list[list[Message]] = [[{"role": "user", "content": text}] for text in ("a", "bad", "c")]
        first, second, third = await handler_of(server)._chat_each(batch)  # pyright: ignore[reportPrivateUsage]
    assert isinstance(first, Completion)
    assert isinstance(second, Rejected)
    assert isinstance(third, Completion)
    assert (first.text, third.text) == ("A", "C")


# --- the key ---------------------------------------------------------------------------------------------------


async def keys_sent(**options: Any) -> list[str | None]:
    async with FakeOpenAI(lambda _: Text("x")) as server:
        await handler_of(server, **options).chat(ASKED)
    return [request.key for request in server.requests]


async def test_key_comes_from_the_argument_then_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", "together")
    assert await keys_sent() == ["none"]  # another endpoint's key is worse than none
    monkeypatch.setenv("OPENAI_API_KEY", "openai\n")
    assert await keys_sent() == ["openai"]
    monkeypatch.setenv("MY_KEY", "mine")
    assert await keys_sent(api_key_env="MY_KEY") == ["mine"]
    assert await keys_sent(api_key_env="MY_KEY", api_key="given") == ["given"]


async def test_key_of_a_named_variable_has_no_substitute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    async with FakeOpenAI([]) as server:
        with pytest.raises(Rejected, match="set MY_KEY"):
            await handler_of(server, api_key_env="MY_KEY").chat(ASKED)
    assert server.requests == []


@pytest.mark.parametrize(
    ("host", "key"),
    [("api.together.xyz", "together"), ("api.openai.com", "openai"), ("api.nottogether.xyz", "openai")],
)
async def test_each_host_gets_its_own_key(host: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake server stands in as the proxy, so that nothing leaves the machine."""
    monkeypatch.setenv("TOGETHER_API_KEY", "together")
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    async with FakeOpenAI([Text("x")]) as server:
        monkeypatch.setenv("http_proxy", server.base_url.removesuffix("/v1"))
        await handler_of(server, base_url=f"http://{host}/v1").chat(ASKED)
    assert [request.key for request in server.requests] == [key]


async def test_custom_headers_do_not_replace_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer another-endpoint")
    assert await keys_sent(api_key="given") == ["given"]
    assert await keys_sent() == ["none"]


async def test_key_does_not_follow_a_redirect() -> None:
    async with FakeOpenAI([Text("x")]) as other:
        moved = Status(307, {"Location": f"{other.base_url}/chat/completions"})
        async with FakeOpenAI([moved]) as server:
            await handler_of(server, api_key="given").chat(ASKED)
    assert [request.key for request in (*server.requests, *other.requests)] == ["given", None]


@pytest.mark.parametrize(
    ("base_url", "names"),
    [(None, "OPENAI_API_KEY"), ("https://api.together.xyz/v1", "TOGETHER_API_KEY or OPENAI_API_KEY")],
)
async def test_missing_key_names_the_remedy(base_url: str | None, names: str) -> None:
    with pytest.raises(Rejected, match=f"^no API key for .* set {names}$"):
        await OpenAIHandler("m", base_url=base_url).chat(ASKED)


async def test_key_is_in_no_repr_and_no_error() -> None:
    async with FakeOpenAI([Status(401)]) as server:
        handler = handler_of(server, api_key="sk-hidden")
        with pytest.raises(Rejected) as caught:
            await handler.chat(ASKED)
    assert "sk-hidden" not in f"{handler!r} {caught.value!r} {caught.value.__cause__!r} {server.requests!r}"


# --- errors of the endpoint ------------------------------------------------------------------------------------


async def test_retry_after_is_obeyed() -> None:
    wait = 0.6  # longer than the SDK's own first wait
    async with FakeOpenAI([Status(429, {"Retry-After": str(wait)}), Text("x")]) as server:
        assert isinstance(await outcome(handler_of(server, max_retries=2)), Completion)
    first, second = server.requests
    assert second.arrived - first.arrived >= wait


@pytest.mark.parametrize("code", [408, 409, 429, 500, 503])
async def test_what_may_pass_is_tried_until_retries_are_used_up(code: int) -> None:
    got, requests = await outcome_of(*[Status(code, SOON)] * 9, max_retries=2)
    assert isinstance(got, Unavailable)
    assert requests == 3


async def test_retry_after_reaches_the_caller() -> None:
    got, _ = await outcome_of(Status(503, {"Retry-After": "7.5"}))
    assert isinstance(got, Unavailable)
    assert got.retry_after == 7.5
    got, _ = await outcome_of(Status(503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}))
    assert isinstance(got, Unavailable)
    assert got.retry_after is None


@pytest.mark.parametrize("code", [400, 401, 403, 404, 418, 422])
async def test_what_will_not_pass_is_asked_once(code: int) -> None:
    got, requests = await outcome_of(Status(code, SOON, message="the reason"), Text("x"), max_retries=2)
    assert isinstance(got, Rejected)
    assert requests == 1
    assert "the reason" in str(got)


@pytest.mark.parametrize("code", [400, 413])
async def test_context_length_is_told_apart(code: int) -> None:
    got, requests = await outcome_of(Status(code, SOON, "context_length_exceeded"), max_retries=2)
    assert isinstance(got, ContextTooLong)
    assert requests == 1


async def test_spent_quota_is_no_rate_limit() -> None:
    got, _ = await outcome_of(Status(429, SOON, "insufficient_quota"))
    assert isinstance(got, Rejected)


# --- replies that are none -------------------------------------------------------------------------------------


NO_JSON = {
    "empty": b"",
    "html": b"<html>busy</html>",
    "cut": b'{"choices": [',
    "no utf-8": b"\xff\xfe\x00",
    "long number": b"9" * 9999,
    "deep": b"[" * 99_999,
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
async def test_body_that_is_no_json_is_unavailable(body: bytes) -> None:
    got, _ = await outcome_of(Malformed(body))
    assert isinstance(got, Unavailable)


def message(**fields: Any) -> Shape:
    return completion(choices=[{"index": 0, "message": fields, "finish_reason": "stop"}])


WRONG_WHOLE: list[Any] = [None, 1, "text", [], [1], {}, {"error": {"message": "busy"}}]
WRONG_CHOICES: list[Any] = [
    None,
    [],
    {},
    "x",
    1,
    [None],
    [1],
    [[]],
    [{}],
    [{"message": None}],
    [{"message": ["x"]}],
]
WRONG_CONTENT: list[Any] = [1, ["x"], {"a": 1}, True, 1.5]
WRONG_USAGE: list[Any] = ["x", 5, [1], {"prompt_tokens": "3", "completion_tokens": "4"}]
WRONG_TOKENS: list[Any] = ["3", 0.5, -3, True, [1], 10**30]
WRONG = [
    *(Shape(value) for value in WRONG_WHOLE),
    *(completion(choices=value) for value in WRONG_CHOICES),
    *(message(content=value) for value in WRONG_CONTENT),
    message(refusal=["x"]),
    completion(choices=[{"message": {"content": "x"}, "finish_reason": ["stop"]}]),
    *(completion(usage=value) for value in WRONG_USAGE),
    *(completion(usage={"prompt_tokens": value, "completion_tokens": 1}) for value in WRONG_TOKENS),
]


async def test_json_of_another_shape_is_unavailable() -> None:
    async with FakeOpenAI(WRONG) as server, handler_of(server) as handler:
        got = [(json.dumps(reply.json_value), await outcome(handler)) for reply in WRONG]
    assert [case for case in got if not isinstance(case[1], Unavailable)] == []


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (completion(usage=None), Completion("hi", Usage(0, 0, 1))),
        (completion(usage={}), Completion("hi", Usage(0, 0, 1))),
        (completion(usage={"completion_tokens": 4}), Completion("hi", Usage(0, 4, 1))),
        (Shape({"choices": [{"message": {"content": "hi"}}]}), Completion("hi", Usage(0, 0, 1), "other")),
        (message(content=None), Completion("", Usage(3, 4, 1))),
        (message(), Completion("", Usage(3, 4, 1))),
        (message(content="hi", unknown={"a": 1}), Completion("hi", Usage(3, 4, 1))),
    ],
)
async def test_what_is_missing_beside_the_text_is_forgiven(reply: Shape, answer: Completion) -> None:
    assert await outcome_of(reply) == (answer, 1)


# --- connections -----------------------------------------------------------------------------------------------


async def test_dropped_connection_is_tried_again() -> None:
    early, late = Drop(), Drop(after_bytes=100)
    outcomes = await asyncio.gather(
        outcome_of(early, Text("x"), max_retries=1),
        outcome_of(late, Text("x"), max_retries=1),
        outcome_of(early, late, max_retries=1),
    )
    kinds = [(type(got), requests) for got, requests in outcomes]
    assert kinds == [(Completion, 2), (Completion, 2), (Unavailable, 2)]


async def test_nobody_listening_is_unavailable() -> None:
    async with FakeOpenAI([]) as server:
        handler = handler_of(server)
    assert isinstance(await outcome(handler), Unavailable)


async def test_silence_beyond_the_timeout_is_tried_again_and_not_billed() -> None:
    async with FakeOpenAI([Text("x", delay=60), Text("x", delay=60)]) as server:
        got = await outcome(handler_of(server, timeout=0.1, max_retries=1))
    assert isinstance(got, Unavailable)
    assert len(server.requests) == 2
    assert server.ledger == []


async def test_body_that_drips_ends_in_twice_the_timeout() -> None:
    start = time.monotonic()
    got, _ = await outcome_of(Endless(pause=0.02), timeout=0.1)
    assert isinstance(got, Unavailable)
    assert time.monotonic() - start < 2


async def test_endless_body_is_cut() -> None:
    got, requests = await outcome_of(Endless(), max_retries=2)
    assert isinstance(got, Unavailable)
    assert "longer than" in str(got)
    assert requests == 1


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:port/v1", "http://[::1/v1"])
async def test_unusable_base_url_is_rejected(base_url: str) -> None:
    assert isinstance(await outcome(OpenAIHandler("m", base_url=base_url)), Rejected)


async def test_text_that_cannot_be_encoded_is_rejected_before_it_is_sent() -> None:
    async with FakeOpenAI([]) as server:
        got = await outcome(handler_of(server), [{"role": "user", "content": "half a pair: \ud83d"}])
    assert isinstance(got, Rejected)
    assert server.requests == []


async def test_concurrency_is_bounded_at_the_server() -> None:
    limit, inside, peak = 4, 0, 0
    full, release = asyncio.Event(), asyncio.Event()

    async def script(request: Request) -> Reply:
        nonlocal inside, peak
        if request.body["messages"][0]["content"] == "probe":
            return Text("x")
        inside += 1
        peak = max(peak, inside)
        if inside == limit:
            full.set()
        await release.wait()
        inside -= 1
        return Text("x")

    async with FakeOpenAI(script) as server, handler_of(server, max_concurrency=limit) as handler:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            chats = [group.create_task(handler.chat(ASKED)) for _ in range(4 * limit)]
            await full.wait()
            for _ in range(5):  # each a whole exchange, in which one chat too many would have come
                await handler_of(server).chat([{"role": "user", "content": "probe"}])
            release.set()
        assert all(chat.result().text == "x" for chat in chats)
    assert peak == limit
    assert len(server.ledger) == 4 * limit + 5


async def test_entered_handler_keeps_its_connection_until_the_last_leaves() -> None:
    async with FakeOpenAI(lambda _: Text("x")) as server:
        handler = handler_of(server)
        async with handler:
            async with handler:
                await handler.chat(ASKED)
            await handler.chat(ASKED)
        assert server.connections == 1
        await handler.chat(ASKED)
        assert server.connections == 2


async def test_one_handler_serves_loops_in_succession_and_side_by_side() -> None:
    async with FakeOpenAI(lambda _: Text("x")) as server:
        handler = handler_of(server)

        async def twice() -> list[str]:
            async with handler:
                return [(await handler.chat(ASKED)).text for _ in range(2)]

        def in_a_loop_of_its_own() -> list[str]:
            return asyncio.run(twice())

        for _ in range(2):
            assert await asyncio.to_thread(in_a_loop_of_its_own) == ["x", "x"]
        both = await asyncio.gather(asyncio.to_thread(in_a_loop_of_its_own), twice())
    assert both == [["x", "x"], ["x", "x"]]


def test_nothing_is_left_open() -> None:
    replies = [
        Text("x"),
        Status(500),
        Drop(),
        Drop(50),
        Malformed(b"{"),
        Endless(limit=2**20),
        Text("x", delay=60),
    ]

    async def run() -> None:
        async with FakeOpenAI(replies) as server:
            handler = handler_of(server, timeout=0.1)
            async with handler:
                await asyncio.gather(*(outcome(handler) for _ in replies))
            chat = asyncio.create_task(handler.chat(ASKED))
            chat.cancel()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(run())
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


# --- the translation of the SDK's exceptions -------------------------------------------------------------------


def sdk_exceptions() -> list[type[openai.OpenAIError]]:
    """Every exception class of the SDK: those that its modules name, and all their subclasses."""
    named = [*vars(openai).values(), *vars(openai._exceptions).values()]
    # type(item), since isinstance would make the SDK's lazy attributes import most of it.
    classes = [item for item in named if issubclass(type(item), type)]
    found = {item for item in classes if issubclass(item, openai.OpenAIError)}
    queue = list(found)
    while queue:
        queue.extend(new := set(queue.pop().__subclasses__()) - found)
        found |= new
    return sorted(found, key=lambda kind: kind.__name__)


STATUS: dict[type[openai.OpenAIError], tuple[int, type[HandlerError]]] = {
    openai.BadRequestError: (400, Rejected),
    openai.AuthenticationError: (401, Rejected),
    openai.PermissionDeniedError: (403, Rejected),
    openai.NotFoundError: (404, Rejected),
    openai.ConflictError: (409, Unavailable),
    openai.UnprocessableEntityError: (422, Rejected),
    openai.RateLimitError: (429, Unavailable),
    openai.InternalServerError: (500, Unavailable),
    openai.APIStatusError: (418, Rejected),
}
OTHER: dict[type[openai.OpenAIError], type[HandlerError]] = {
    openai.APIConnectionError: Unavailable,
    openai.APITimeoutError: Unavailable,
    openai.APIResponseValidationError: Unavailable,
}


@pytest.fixture(scope="module")
async def responses(anyio_backend: str) -> dict[int, Any]:
    """Real responses with an error status, by status."""
    found: dict[int, Any] = {}
    async with (
        FakeOpenAI([Status(code) for code, _ in STATUS.values()]) as server,
        openai.AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client,
    ):
        for _ in STATUS:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model="m", messages=[])
            found[caught.value.status_code] = caught.value.response
    return found


@pytest.mark.parametrize("kind", sdk_exceptions(), ids=lambda kind: kind.__name__)
async def test_every_exception_of_the_sdk_is_translated(
    kind: type[openai.OpenAIError], responses: dict[int, Any]
) -> None:
    """By enumeration: a class that a new SDK adds is met here first."""
    code, expected = next(
        (STATUS[base] for base in kind.__mro__ if base in STATUS), (418, OTHER.get(kind, Rejected))
    )
    if issubclass(kind, openai.APIError):
        response = responses[code]
        known: dict[str, Any] = {
            "message": "why",
            "response": response,
            "request": response.request,
            "body": {},
        }
        error = kind(**{name: known[name] for name in inspect.signature(kind).parameters})
    else:
        error = kind.__new__(kind, "why")  # as much of it as is read
    assert type(translate(error)) is expected
    if isinstance(error, openai.APIStatusError):
        for name, ours in (("context_length_exceeded", ContextTooLong), ("insufficient_quota", Rejected)):
            error.code = name
            assert type(translate(error)) is ours


def test_enumeration_finds_what_the_sdk_exports() -> None:
    assert {*STATUS, *OTHER, openai.OpenAIError} <= set(sdk_exceptions())


# --- the fake server itself ------------------------------------------------------------------------------------


async def test_ledger_holds_what_was_sent_to_its_end() -> None:
    replies = [Text("one two"), Drop(50), Status(500), Refusal("no"), Malformed(b"{")]
    async with FakeOpenAI(replies) as server:
        for _ in replies:
            await outcome(handler_of(server))
    assert [(bill.prompt_tokens, bill.completion_tokens) for bill in server.ledger] == [(5, 2), (5, 1)]


async def test_used_up_and_raising_scripts_say_so_at_once() -> None:
    def broken(request: Request) -> Reply:
        raise LookupError(request.model)

    wrong: Any = ["x"]
    servers = (FakeOpenAI([]), FakeOpenAI(broken), FakeOpenAI(wrong))
    for server, said in zip(
        servers, ("no reply for request 1", "LookupError: m", "'x', which is no"), strict=True
    ):
        async with server:
            got = await outcome(handler_of(server, max_retries=2))
        assert said in str(got)
        assert len(server.requests) == 1


async def test_one_server_plays_several_models() -> None:
    async with (
        FakeOpenAI(lambda request: Text(f"I am {request.model}")) as server,
        openai.AsyncOpenAI(base_url=server.base_url, api_key="k") as client,
    ):
        for model in ("boss", "hand"):
            assert (await OpenAIHandler(model, base_url=server.base_url).chat(ASKED)).text == f"I am {model}"
        assert [model.id async for model in client.models.list()] == ["fake"]


async def test_streams_in_pieces_with_finish_reason_and_usage() -> None:
    async with (
        FakeOpenAI([Text("one two\nthree", finish_reason="length")]) as server,
        openai.AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client,
    ):
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice.delta.content for choice in choices] == ["one ", "two\n", "three", None]
    assert choices[-1].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("request_bytes", "code"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 99_999, 431),
        (b"GET /elsewhere HTTP/1.1\r\n\r\n", 404),
    ],
)
async def test_bad_requests_get_an_error_and_no_reply_of_the_script(request_bytes: bytes, code: int) -> None:
    async with FakeOpenAI([Text("x")]) as server:
        port = int(server.base_url.split(":")[2].split("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes)
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 %d " % code)
        writer.close()
        await writer.wait_closed()
        assert isinstance(await outcome(handler_of(server)), Completion)


def test_replies_are_read_from_a_file(tmp_path: Path) -> None:
    items: list[Any] = ["a", {"text": "b", "delay": 0.5}, {"status": 429, "headers": {"Retry-After": "1"}}]
    expected = [Text("a"), Text("b", delay=0.5), Status(429, {"Retry-After": "1"})]
    path = tmp_path / "replies"
    for content in (json.dumps(items), "\n".join(json.dumps(item) for item in items)):
        path.write_text(content, encoding="utf-8")
        assert read_replies(path) == expected
    for wrong in (1, {"text": 1}, {"text": "a", "colour": "red"}):
        path.write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(ValueError, match="a reply is"):
            read_replies(path)


async def test_program_prints_its_url_serves_and_ends_quietly(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text('"hello"\n', encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "supdist.tools.fake_openai", str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        url = (await process.stdout.readline()).decode().strip()
        got = await outcome(OpenAIHandler("m", base_url=url))
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert isinstance(got, Completion)
    assert got.text == "hello"
