"""The handler of real endpoints, over HTTP and through the real SDK, against the fake server that ships."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import warnings
from typing import Any

import pytest
from openai_support import ASKED, SOON, completion, handler_of, outcome, outcome_of

from supdist.handlers import (
    Completion,
    Message,
    OpenAIHandler,
    Price,
    Rejected,
    Unavailable,
    Usage,
)
from supdist.tools.testing.fake_openai import (
    Drop,
    Endless,
    FakeOpenAI,
    Malformed,
    Refusal,
    Reply,
    Request,
    Status,
    Stream,
    Text,
)

pytestmark = pytest.mark.usefixtures("bare_environment")


# --- what is sent, and what comes back ------------------------------------------------------------


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
        (Text("x", finish_reason="tool_calls"), "tool_call"),
        (Text("x", finish_reason="something_new"), "other"),
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


async def test_openai_itself_gets_the_name_that_its_reasoning_models_demand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fake server stands in as the proxy, so that nothing leaves the machine."""
    async with FakeOpenAI([Text("x")]) as server:
        monkeypatch.setenv("http_proxy", server.base_url.removesuffix("/v1"))
        await handler_of(server, base_url="http://api.openai.com/v1", api_key="k", max_tokens=7).chat(ASKED)
    assert server.requests[0].body == {"model": "m", "messages": ASKED, "max_completion_tokens": 7}


async def test_extra_headers_are_sent_and_come_before_the_key() -> None:
    headers = {"X-Team": "blue", "authorization": "Basic abc"}
    async with FakeOpenAI([Text("x")]) as server:
        await handler_of(server, api_key="k", extra_headers=headers).chat(ASKED)
    sent = server.requests[0].headers
    assert (sent["x-team"], sent["authorization"]) == ("blue", "Basic abc")


@pytest.mark.parametrize(
    "options",
    [
        {"extra_headers": {"X": "a\r\nY: b"}},
        {"extra_headers": {"X": "é"}},
        {"extra_headers": {"X": ""}},
        {"extra_headers": {"a b": "c"}},
        {"extra_body": {"stream": True}},
        {"extra_body": {"messages": []}},
        {"base_url": []},
        {"base_url": ["http://a/v1", ""]},
    ],
)
def test_what_cannot_be_sent_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))) as caught:
        OpenAIHandler("m", **options)
    assert "Y: b" not in str(caught.value)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_reasoning_is_carried_beside_the_answer(name: str) -> None:
    said = {"role": "assistant", "content": "hi", name: "hm"}
    got, _ = await outcome_of(completion(choices=[{"message": said, "finish_reason": "stop"}]))
    assert got == Completion("hi", Usage(3, 4, 1), reasoning="hm")


async def test_thoughts_that_used_up_the_tokens_are_no_answer() -> None:
    said = {"role": "assistant", "content": None, "reasoning": "hm"}
    got, _ = await outcome_of(completion(choices=[{"message": said, "finish_reason": "length"}]))
    assert got == Completion("", Usage(3, 4, 1), "length", "hm")


async def test_reasoning_of_another_type_is_left_out() -> None:
    said = {"role": "assistant", "content": "hi", "reasoning": [1, {"a": "hm"}], "reasoning_content": 1}
    got, _ = await outcome_of(completion(choices=[{"message": said, "finish_reason": "stop"}]))
    assert got == Completion("hi", Usage(3, 4, 1))


async def test_tool_call_without_text_is_rejected_and_with_text_is_the_text() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    for content, kind in ((None, Rejected), ("", Rejected), ("hi", Completion)):
        said = {"role": "assistant", "content": content, "tool_calls": [call]}
        got, _ = await outcome_of(completion(choices=[{"message": said, "finish_reason": "tool_calls"}]))
        assert isinstance(got, kind)


async def test_attempts_before_the_answer_are_counted() -> None:
    async with FakeOpenAI([Status(503, SOON), Drop(), Text("x")]) as server:
        got = await handler_of(server, max_retries=5).chat(ASKED)
    assert got.retries == 2


# --- what the engine asks of a handler ------------------------------------------------------------


def test_identity_is_json_that_holds_what_decides_an_answer_and_no_secret() -> None:
    options: dict[str, Any] = {"temperature": 0.5, "max_tokens": 7, "extra_body": {"top_k": 3}}
    secret: dict[str, Any] = {"api_key": "sk-hidden", "extra_headers": {"X-Key": "hidden-too"}}
    urls = ["http://b/v1", "http://user:hidden-user@a/v1?key=hidden-query"]
    handler = OpenAIHandler("m", base_url=urls, **options, **secret)
    same = OpenAIHandler(
        "m", base_url=["http://a/v1", "http://b/v1"], **options, timeout=3, price=Price(1, 2)
    )
    assert handler.identity() == same.identity()
    assert "hidden" not in json.dumps(handler.identity()) + repr(handler)
    changes: list[tuple[str, Any]] = [
        ("temperature", 0.6),
        ("max_tokens", 8),
        ("extra_body", {}),
        ("base_url", "http://c"),
    ]
    for name, value in changes:
        changed: dict[str, Any] = options | {"base_url": urls, name: value}
        assert OpenAIHandler("m", **changed).identity() != same.identity()


def test_what_is_known_of_a_model_is_told() -> None:
    handler = OpenAIHandler("m", base_url=["http://a", "http://b"], window=9, max_tokens=3, price=Price(1, 2))
    assert (handler.base_url, handler.window, handler.max_tokens) == ("http://a", 9, 3)
    assert handler.price == Price(1, 2)
    assert OpenAIHandler("m", extra_body={"max_completion_tokens": 5}).max_tokens == 5
    assert (OpenAIHandler("m").window, OpenAIHandler("m").price) == (None, None)


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({}, True),
        ({"temperature": 0.1}, True),
        ({"temperature": 0}, False),
        ({"temperature": 0.1, "extra_body": {"temperature": 0.0}}, False),
    ],
)
def test_zero_temperature_does_not_sample(options: dict[str, Any], samples: bool) -> None:
    assert OpenAIHandler("m", **options).samples is samples


async def test_batch_keeps_order_and_errors_in_place() -> None:
    def script(request: Request) -> Reply:
        text = request.body["messages"][-1]["content"]
        return Status(400) if text == "bad" else Text(text.upper())

    async with FakeOpenAI(script) as server:
        batch: list[list[Message]] = [[{"role": "user", "content": text}] for text in ("a", "bad", "c")]
        first, second, third = await handler_of(server)._chat_each(batch)  # pyright: ignore[reportPrivateUsage]  # the test looks at private state
    assert isinstance(first, Completion)
    assert isinstance(second, Rejected)
    assert isinstance(third, Completion)
    assert (first.text, third.text) == ("A", "C")


# --- the key --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("host", "sent"), [("api.openai.com", "org-1"), ("api.together.xyz", None)])
async def test_organisation_of_the_environment_is_for_openai_alone(
    host: str, sent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "org-1")
    async with FakeOpenAI([Status(503, SOON), Text("x")]) as server:
        monkeypatch.setenv("http_proxy", server.base_url.removesuffix("/v1"))
        await handler_of(server, base_url=f"http://{host}/v1", api_key="k", max_retries=1).chat(ASKED)
    for request in server.requests:
        headers = [request.headers.get(name) for name in ("openai-organization", "openai-project")]
        assert headers == [sent, sent]


async def test_with_extra_headers_no_redirect_is_followed() -> None:
    """On the way to another host the HTTP library drops ``Authorization`` alone."""
    async with FakeOpenAI([Text("x")]) as other:
        moved = Status(307, {"Location": f"{other.base_url}/chat/completions"})
        async with FakeOpenAI([moved]) as server:
            got = await outcome(handler_of(server, extra_headers={"X-Key": "secret"}))
    assert isinstance(got, Rejected)
    assert other.requests == []


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


async def test_an_endpoint_that_quotes_the_key_is_not_quoted() -> None:
    async with FakeOpenAI([Status(401, message="sk-secret-123 is no key")]) as server:
        error = await outcome(handler_of(server, api_key="sk-secret-123"))
    assert str(error).endswith("*** is no key")


async def test_key_is_in_no_repr_and_no_error() -> None:
    async with FakeOpenAI([Status(401)]) as server:
        handler = handler_of(server, api_key="sk-hidden")
        with pytest.raises(Rejected) as caught:
            await handler.chat(ASKED)
    assert "sk-hidden" not in f"{handler!r} {caught.value!r} {caught.value.__cause__!r} {server.requests!r}"


# --- connections ----------------------------------------------------------------------------------


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


@pytest.mark.timing
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


async def test_certificates_are_loaded_once_for_a_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeOpenAI(lambda _: Text("x")) as server:
        handler = handler_of(server)
        await handler.chat(ASKED)
        monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
        assert isinstance(await outcome(handler), Completion)
        assert isinstance(await outcome(handler_of(server)), Rejected)


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


async def test_long_messages_arrive_as_they_are_with_a_retry_and_in_streams() -> None:
    texts = ['\x00"\\\u20ac\U0001f600\n' * 40_000, "short", "x" * 100_000]
    asked: list[Message] = [{"role": "user", "content": text} for text in texts]
    async with FakeOpenAI([Status(503, SOON), Text("x"), Text("x")]) as server:
        handler = handler_of(server, max_retries=1)
        assert isinstance(await outcome(handler, asked), Completion)
        await handler.chat_stream(asked, lambda _: None)
    assert [request.body["messages"] for request in server.requests] == [asked] * 3


async def test_long_message_with_half_a_pair_is_rejected() -> None:
    async with FakeOpenAI([]) as server:
        got = await outcome(handler_of(server), [{"role": "user", "content": "x" * 100_000 + "\ud800"}])
    assert isinstance(got, Rejected)
    assert "cannot be encoded" in str(got)


async def test_long_event_of_a_stream_is_cut() -> None:
    async with FakeOpenAI([Stream(["x" * (3 << 20)])]) as server:
        with pytest.raises(Unavailable, match="an event of the endpoint's stream is longer than"):
            await handler_of(server).chat_stream(ASKED, lambda _: None)
