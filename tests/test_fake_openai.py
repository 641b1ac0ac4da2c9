"""The fake server itself, by the SDK and by bytes."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
from openai_support import ASKED, handler_of, outcome

from supdist.handlers import (
    Completion,
    OpenAIHandler,
    ScriptedHandler,
)
from supdist.tools.testing.fake_openai import (
    Drop,
    FakeOpenAI,
    Malformed,
    Refusal,
    Reply,
    Request,
    Shape,
    Status,
    Stream,
    Text,
    read_replies,
)

pytestmark = pytest.mark.usefixtures("bare_environment")


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


async def test_client_that_leaves_is_seen_at_once_and_billed_nothing() -> None:
    arrived = asyncio.Event()

    def script(_: Request) -> Reply:
        arrived.set()
        return Text("x", delay=60)

    async with FakeOpenAI(script) as server, asyncio.timeout(5):
        port = int(server.base_url.split(":")[2].split("/")[0])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"messages": []}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        await arrived.wait()
        writer.close()
        await server.idle()
    assert server.ledger == []


async def test_faults_in_a_stream_are_sent_where_they_stand() -> None:
    parts = ["one ", {"reasoning": "hm"}, Shape([1]), Malformed(b"{"), Status(500, message="busy"), Drop()]
    async with FakeOpenAI([Stream(parts)]) as server:
        port = int(server.base_url.split(":")[2].split("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"messages": [], "stream": true}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        sent = (await asyncio.wait_for(reader.read(), 5)).decode()
        writer.close()
        await writer.wait_closed()
    events = re.findall(r"^data: (.*)$", sent, re.MULTILINE)
    assert json.loads(events[0])["choices"][0]["delta"] == {"content": "one "}
    assert json.loads(events[1])["choices"][0]["delta"] == {"reasoning": "hm"}
    assert events[2:4] == ["[1]", "{"]
    assert json.loads(events[4])["error"]["message"] == "busy"
    assert "DONE" not in sent
    assert not sent.endswith("0\r\n\r\n")
    assert server.ledger == []


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
            model="m",
            messages=[{"role": "user", "content": "x"}],
            stream=True,
            stream_options={"include_usage": True},
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


def test_a_file_of_replies_is_split_at_line_feeds_alone_and_may_have_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    lines = [json.dumps("a\u2028b\x85c", ensure_ascii=False), json.dumps("second")]
    for start, end in (("", "\n"), ("\ufeff", "\n"), ("\ufeff", "\r\n")):
        path.write_bytes((start + end.join(lines) + end).encode())
        assert read_replies(path) == [Text("a\u2028b\x85c"), Text("second")]
        assert ScriptedHandler.from_file(path)


def test_what_is_wrong_in_a_file_of_replies_is_named_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text('"one"\n{"text": \n', encoding="utf-8")
    for read in (ScriptedHandler.from_file, read_replies):
        with pytest.raises(ValueError, match=r"replies\.jsonl, line 2: no JSON"):
            read(path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"replies\.jsonl: it is a binary file"):
        read_replies(path)
    path.write_text('"one"\n{"text": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"replies\.jsonl, reply 2: a reply is"):
        read_replies(path)


async def test_program_prints_its_url_serves_and_ends_quietly(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text('"hello"\n', encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "supdist.tools.testing.fake_openai", str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        url = (await process.stdout.readline()).decode().strip()
        got = await outcome(OpenAIHandler("m", base_url=url))
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
    assert isinstance(got, Completion)
    assert got.text == "hello"
