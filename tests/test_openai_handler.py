"""The handler of real endpoints, over HTTP and through the real SDK, against the fake server that ships."""

from __future__ import annotations

import asyncio
import gc
import time
import warnings
from typing import Any

import pytest
from openai_support import ASKED, handler_of, outcome, outcome_of
from supdist.handlers import (
    Completion,
    Message,
    OpenAIHandler,
    Rejected,
    Unavailable,
    Usage,
)
from supdist.tools.fake_openai import (
    Drop,
    Endless,
    FakeOpenAI,
    Malformed,
    Refusal,
    Reply,
    Request,
    Status,
    Text,
)

pytestmark = pytest.mark.usefixtures("bare_environment")


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
