"""An OpenAI-compatible server on 127.0.0.1 that answers from a script. To serve a file::

python -m supdist.tools.testing.fake_openai replies.jsonl --port 8000
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import re
import signal
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .http1 import MAX_HEAD, BadRequestError, Request, head, read, send_body, send_chunk
from .replies import (
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
    read_replies,
)


@dataclass(frozen=True, slots=True)
class Billed:
    """The tokens of a completion that was sent whole."""

    model: str
    prompt_tokens: int
    completion_tokens: int


# Replies one after another, or a function of the request, plain or ``async``.
Script = Iterable[Reply] | Callable[[Request], Reply | Awaitable[Reply]]


class FakeOpenAI:
    """The server. A script that raises or ends gives status 500.

    Attributes:
        requests: all requests in order.
        ledger: completions that would be billed.
        base_url: the endpoint, once entered.
    """

    # Of the URL that clients get.
    _root = "/v1"

    def __init__(self, script: Script, *, port: int = 0) -> None:
        """Open nothing yet. Port 0 is any free one."""
        self.requests: list[Request] = []
        self.ledger: list[Billed] = []
        self.connections = 0
        self.base_url = ""
        self._script = script if callable(script) else iter(script)
        self._port = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no request is under way."""
        await self._idle.wait()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, limit=MAX_HEAD)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{self._root}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        server = self._server
        assert server is not None, "it is entered"
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Last: from Python 3.12 on it waits for all connections.
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # It was accepted while the server was closing.
        if self._closed:
            writer.transport.abort()
            return
        self.connections += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
                writer.close()
                await writer.wait_closed()
        finally:
            # close() alone would wait for a client that does not read.
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays open."""
        try:
            request, keep_alive = await read(reader)
        except BadRequestError as error:
            await self._send_error(writer, Status(error.code, {"Connection": "close"}, message=str(error)))
            return False
        self.requests.append(request)
        # ``idle`` waits for the end of all requests.
        self._busy += 1
        self._idle.clear()
        try:
            return await self._reply(reader, writer, request) and keep_alive
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

    async def _reply(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request
    ) -> bool:
        reply = self._refusal(request) or await self._next(request)
        if isinstance(reply, Text) and reply.delay:
            with suppress(TimeoutError):
                # During the delay, only the end of a client that leaves can arrive.
                await asyncio.wait_for(reader.read(1), reply.delay)
                return False
        # A client that left is not billed.
        if reader.at_eof():
            return False
        return await self._send(writer, request, reply)

    def _refusal(self, request: Request) -> Reply | None:
        """Return the reply to a request that the script does not answer."""
        match request.method, request.path, request.body:
            case "GET", "/v1/models", _:
                model = {"id": "fake", "object": "model", "created": 0, "owned_by": "fake"}
                return Shape({"object": "list", "data": [model]})
            case "POST", "/v1/chat/completions", {"messages": list()}:
                return None
            case "POST", "/v1/chat/completions", _:
                return Status(400, message="'messages' must be a list")
            case _:
                return Status(404, message=f"there is no {request.method} {request.path} here")

    async def _next(self, request: Request) -> Reply:
        try:
            reply = self._script(request) if callable(self._script) else next(self._script)
            return await reply if inspect.isawaitable(reply) else reply
        except StopIteration:
            message = f"the script has no reply for request {len(self.requests)}"
        except Exception as error:
            message = f"the script raised {type(error).__name__}: {error}"
        # A retry would use up another reply.
        return Status(500, {"X-Should-Retry": "false"}, message=message)

    async def _send(self, writer: asyncio.StreamWriter, request: Request, reply: Reply) -> bool:
        """Send the reply; return whether the connection stays open."""
        if self._is_stream(request) and isinstance(reply, Text | Refusal | Stream):
            return await self._send_stream(writer, request, self._as_stream(reply))
        match reply:
            case Text() | Refusal():
                await self._send_completion(writer, request, reply)
            case Status():
                await self._send_error(writer, reply)
            case Malformed(body, status):
                await send_body(writer, status, body)
            case Shape(value):
                await send_body(writer, 200, json.dumps(value).encode())
            case Drop(count):
                if count:
                    writer.write(head(200, {"Content-Length": str(count + 1)}) + b" " * count)
                return False
            case Endless(limit, pause):
                writer.write(head(200, {"Transfer-Encoding": "chunked"}))
                for _ in range(0, limit, MAX_HEAD):
                    await send_chunk(writer, b" " * MAX_HEAD)
                    await asyncio.sleep(pause)
                return False
            case _:
                message = f"the script returned {reply!r}, which is not a reply"
                await self._send_error(writer, Status(500, {"X-Should-Retry": "false"}, message=message))
        return True

    def _is_stream(self, request: Request) -> bool:
        return request.body.get("stream") is True

    def _as_stream(self, reply: Text | Refusal | Stream) -> Stream:
        return as_stream(reply)

    async def _send_completion(
        self, writer: asyncio.StreamWriter, request: Request, reply: Text | Refusal
    ) -> None:
        usage = self._usage(request, reply.text, reply.usage)
        part = "content" if isinstance(reply, Text) else "refusal"
        message = {"role": "assistant", "content": None, "refusal": None, part: reply.text}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        whole = self._common(request) | {"object": "chat.completion", "choices": [choice], "usage": usage}
        await send_body(writer, 200, json.dumps(whole).encode())
        # After the send: a client that breaks off is not billed.
        self._bill(request, usage)

    async def _send_stream(self, writer: asyncio.StreamWriter, request: Request, reply: Stream) -> bool:
        common = self._common(request) | {"object": "chat.completion.chunk"}
        text = "".join(part for part in reply.parts if isinstance(part, str))
        usage = self._usage(request, text, reply.usage)
        writer.write(head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
        for part in reply.parts:
            if not await _send_part(writer, part, common):
                return False
        await _send_event(writer, common | _choices({}, reply.finish_reason))
        match request.body:
            case {"stream_options": {"include_usage": True}}:
                last: dict[str, Any] = {"choices": [], "usage": usage}
                await _send_event(writer, common | last)
            case _:
                pass
        await send_chunk(writer, b"data: [DONE]\n\n")
        await send_chunk(writer, b"")
        self._bill(request, usage)
        return True

    async def _send_error(self, writer: asyncio.StreamWriter, reply: Status) -> None:
        await send_body(writer, reply.code, json.dumps(self._error(reply)).encode(), reply.headers)

    def _error(self, reply: Status) -> dict[str, Any]:
        return _error(reply)

    def _common(self, request: Request) -> dict[str, Any]:
        return {"id": f"chatcmpl-{len(self.requests)}", "created": 0, "model": request.model}

    def _usage(self, request: Request, text: str, counts: tuple[int, int] | None) -> dict[str, int]:
        asked = sum(_words(message) for message in request.body["messages"])
        prompt, completion = counts or (asked, len(text.split()))
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _bill(self, request: Request, usage: dict[str, int]) -> None:
        self.ledger.append(Billed(request.model, usage["prompt_tokens"], usage["completion_tokens"]))


def _error(reply: Status) -> dict[str, Any]:
    message = reply.message or f"the script says {reply.code}"
    standard = {"message": message, "type": "fake_error", "param": None, "code": reply.code_name}
    return {"error": standard | dict(reply.fields)}


def as_stream(reply: Text | Refusal | Stream) -> Stream:
    """Return a whole reply as a stream, word by word."""
    if isinstance(reply, Stream):
        return reply
    pieces: list[str] = re.findall(r"\s*\S+\s*|\s+", reply.text)
    if isinstance(reply, Text):
        return Stream(pieces, reply.finish_reason, reply.usage)
    return Stream([{"refusal": piece} for piece in pieces], reply.finish_reason, reply.usage)


async def _send_part(writer: asyncio.StreamWriter, part: Part, common: dict[str, Any]) -> bool:
    """Send a part; return whether the stream goes on."""
    match part:
        case str() | dict():
            delta = {"content": part} if isinstance(part, str) else part
            await _send_event(writer, common | _choices(delta))
        case Shape(value):
            await _send_event(writer, value)
        case Malformed(body):
            await send_chunk(writer, b"data: " + body + b"\n\n")
        case Status():
            await _send_event(writer, _error(part))
        case Drop(count):
            # Without the last chunk, the client sees that the body is cut.
            writer.write(b" " * count)
            return False
        case Endless(limit, pause):
            for _ in range(0, limit, MAX_HEAD):
                await send_chunk(writer, b":" * MAX_HEAD + b"\n")
                await asyncio.sleep(pause)
            return False
    return True


def _choices(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


async def _send_event(writer: asyncio.StreamWriter, value: object) -> None:
    await send_chunk(writer, b"data: " + json.dumps(value).encode() + b"\n\n")


def _words(message: object) -> int:
    match message:
        case {"content": str(content)}:
            return len(content.split())
        case _:
            return 0


async def _main(replies: list[Reply], port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with FakeOpenAI(replies, port=port) as server:
        print(server.base_url, flush=True)
        await stop.wait()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="fake_openai", description="Serve scripted replies as an OpenAI endpoint."
    )
    parser.add_argument("replies", type=Path, help="JSON Lines, or a JSON list, of strings or objects")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 is any free one")
    arguments = parser.parse_args()
    try:
        asyncio.run(_main(read_replies(arguments.replies), arguments.port))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
