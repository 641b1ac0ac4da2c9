"""An OpenAI-compatible server that answers from a script: the endpoint of tests and of demonstrations.

::

    async with FakeOpenAI([Status(429, headers={"Retry-After": "1"}), Text("four")]) as server:
        handler = OpenAIHandler("any-name", base_url=server.base_url)

It listens on 127.0.0.1 alone, accepts every key and every model name, and speaks as much HTTP/1.1 as clients of
that API need: keep-alive, ``Content-Length`` in requests, chunks in replies. As a program it serves a file::

    python -m supdist.tools.fake_openai replies.jsonl --port 8000
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import re
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import responses
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

MAX_HEAD = 64 * 1024
"""Bytes of a request's line and headers."""
MAX_BODY = 64 * 1024 * 1024
"""Bytes of a request's body."""


@dataclass(frozen=True, slots=True)
class Text:
    """A completion, ``delay`` seconds after the request. ``usage`` is (prompt, completion) tokens; else words count."""

    text: str
    finish_reason: str = "stop"
    delay: float = 0.0
    usage: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A completion whose message holds a refusal in place of content."""

    text: str
    finish_reason: ClassVar[str] = "stop"
    delay: ClassVar[float] = 0.0
    usage: ClassVar[None] = None


@dataclass(frozen=True, slots=True)
class Status:
    """An HTTP error in the API's form; ``code_name`` is the error's ``code``, as in ``context_length_exceeded``."""

    code: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    code_name: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Status 200 and these bytes, said to be JSON."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """Status 200 and this JSON value, whatever its shape."""

    json_value: Any


@dataclass(frozen=True, slots=True)
class Drop:
    """The connection closes: without a byte, or after so many bytes of a body that should have been longer."""

    after_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Endless:
    """A body of spaces that goes on until the client leaves or ``limit`` bytes are sent, ``pause`` seconds apart."""

    limit: int = 64 * 1024 * 1024
    pause: float = 0.0


Reply = Text | Refusal | Status | Malformed | Shape | Drop | Endless


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came. ``arrived`` is in seconds of ``time.monotonic``; ``key`` is the bearer token, if any."""

    method: str
    path: str
    body: dict[str, Any]
    arrived: float
    key: str | None = field(repr=False)

    @property
    def model(self) -> str:
        """The model that is asked for; empty where none is named."""
        return str(self.body.get("model", ""))


@dataclass(frozen=True, slots=True)
class Billed:
    """A completion that was sent to its last byte, with its tokens."""

    model: str
    prompt_tokens: int
    completion_tokens: int


Script = Iterable[Reply] | Callable[[Request], Reply | Awaitable[Reply]]
"""Replies, used one after another, or a function of the request, plain or ``async``."""


class FakeOpenAI:
    """The server. ``requests`` is all that was asked, ``ledger`` all that would be billed, both in order.

    ``connections`` counts what was accepted. A script that is used up, or that raises, answers 500, with the
    header that asks the SDK not to retry.
    """

    def __init__(self, script: Script, *, port: int = 0) -> None:
        """Nothing is opened yet. Port 0 is any free one."""
        self.requests: list[Request] = []
        self.ledger: list[Billed] = []
        self.connections = 0
        self.base_url = ""
        self._script = script if callable(script) else iter(script)
        self._port = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> FakeOpenAI:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, limit=MAX_HEAD)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed:  # it was accepted in the last moment
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
            writer.transport.abort()  # close() alone would wait for a client that does not read

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply. Returns whether another may follow on this connection."""
        try:
            request, keep_alive = await _read(reader)
        except _BadRequestError as error:
            await _send_error(writer, Status(error.code, {"Connection": "close"}, message=str(error)))
            return False
        self.requests.append(request)
        match request.method, request.path, request.body:
            case "GET", "/v1/models", _:
                model = {"id": "fake", "object": "model", "created": 0, "owned_by": "fake"}
                reply = Shape({"object": "list", "data": [model]})
            case "POST", "/v1/chat/completions", {"messages": list()}:
                reply = await self._next(request)
            case "POST", "/v1/chat/completions", _:
                reply = Status(400, message="'messages' must be a list")
            case _:
                reply = Status(404, message=f"there is no {request.method} {request.path} here")
        if isinstance(reply, Text):
            await asyncio.sleep(reply.delay)
        if reader.at_eof():
            return False  # the client left meanwhile, and is billed nothing
        return await self._send(writer, request, reply) and keep_alive

    async def _next(self, request: Request) -> Reply:
        try:
            reply = self._script(request) if callable(self._script) else next(self._script)
            return await reply if inspect.isawaitable(reply) else reply
        except StopIteration:
            message = f"the script has no reply for request {len(self.requests)}"
        except Exception as error:
            message = f"the script raised {type(error).__name__}: {error}"
        return Status(500, {"X-Should-Retry": "false"}, message=message)

    async def _send(self, writer: asyncio.StreamWriter, request: Request, reply: Reply) -> bool:
        """Send the reply. Returns whether the connection can go on."""
        match reply:
            case Text() | Refusal():
                await self._send_completion(writer, request, reply)
            case Status():
                await _send_error(writer, reply)
            case Malformed(body):
                await _send_body(writer, 200, body)
            case Shape(value):
                await _send_body(writer, 200, json.dumps(value).encode())
            case Drop(count):
                if count:
                    writer.write(_head(200, {"Content-Length": str(count + 1)}) + b" " * count)
                return False
            case Endless(limit, pause):
                writer.write(_head(200, {"Transfer-Encoding": "chunked"}))
                for _ in range(0, limit, MAX_HEAD):
                    await _send_chunk(writer, b" " * MAX_HEAD)
                    await asyncio.sleep(pause)
                return False
            case _:
                message = f"the script returned {reply!r}, which is no reply"
                await _send_error(writer, Status(500, {"X-Should-Retry": "false"}, message=message))
        return True

    async def _send_completion(
        self, writer: asyncio.StreamWriter, request: Request, reply: Text | Refusal
    ) -> None:
        asked = sum(_words(message) for message in request.body["messages"])
        prompt, completion = reply.usage or (asked, len(reply.text.split()))
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        usage["total_tokens"] = prompt + completion
        common = {"id": f"chatcmpl-{len(self.requests)}", "created": 0, "model": request.model}
        part = "content" if isinstance(reply, Text) else "refusal"
        if request.body.get("stream") is True:
            pieces = re.findall(r"\s*\S+\s*|\s+", reply.text)
            choices: list[dict[str, Any]] = [
                {"delta": {part: piece}, "finish_reason": None} for piece in pieces
            ]
            choices.append({"delta": {}, "finish_reason": reply.finish_reason})
            chunks: list[dict[str, Any]] = [{"choices": [{"index": 0} | choice]} for choice in choices]
            chunks.append({"choices": [], "usage": usage})
            writer.write(_head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
            for chunk in chunks:
                event = json.dumps(common | {"object": "chat.completion.chunk"} | chunk)
                await _send_chunk(writer, f"data: {event}\n\n".encode())
            await _send_chunk(writer, b"data: [DONE]\n\n")
            await _send_chunk(writer, b"")
        else:
            message = {"role": "assistant", "content": None, "refusal": None, part: reply.text}
            choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
            whole = common | {"object": "chat.completion", "choices": [choice], "usage": usage}
            await _send_body(writer, 200, json.dumps(whole).encode())
        self.ledger.append(Billed(request.model, prompt, completion))


class _BadRequestError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


async def _read(reader: asyncio.StreamReader) -> tuple[Request, bool]:
    """The next request, and whether its sender keeps the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise _BadRequestError(431, f"the headers are longer than {MAX_HEAD} bytes") from None
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    target, _, version = rest.partition(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    size = headers.get("content-length", "0")
    if not version.startswith("HTTP/1.") or not re.fullmatch(r"[0-9]{1,18}", size):
        raise _BadRequestError(400, "this is no HTTP/1.1 request")
    if "transfer-encoding" in headers:
        raise _BadRequestError(411, "a body needs a Content-Length here")
    if int(size) > MAX_BODY:
        raise _BadRequestError(413, f"the body is longer than {MAX_BODY} bytes")
    content = await reader.readexactly(int(size))
    try:
        path = urlsplit(target).path  # a client behind a proxy names the whole URL
        body: Any = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        raise _BadRequestError(400, "the body is no JSON") from None
    if not isinstance(body, dict):
        raise _BadRequestError(400, "the body is no JSON object")
    scheme, _, key = headers.get("authorization", "").partition(" ")
    bearer = key if scheme.lower() == "bearer" else None
    request = Request(method, path, cast("dict[str, Any]", body), time.monotonic(), bearer)
    return request, version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"


def _head(code: int, headers: Mapping[str, str]) -> bytes:
    first = f"HTTP/1.1 {code} {responses.get(code, '')}"
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _send_body(
    writer: asyncio.StreamWriter, code: int, body: bytes, headers: Mapping[str, str] | None = None
) -> None:
    standard = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    writer.write(_head(code, standard | dict(headers or {})) + body)
    await writer.drain()


async def _send_error(writer: asyncio.StreamWriter, reply: Status) -> None:
    message = reply.message or f"the script says {reply.code}"
    error = {"message": message, "type": "fake_error", "param": None, "code": reply.code_name}
    await _send_body(writer, reply.code, json.dumps({"error": error}).encode(), reply.headers)


async def _send_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()


def _words(message: object) -> int:
    match message:
        case {"content": str(content)}:
            return len(content.split())
        case _:
            return 0


def read_replies(path: Path) -> list[Reply]:
    """The replies of a file: JSON Lines, or one JSON list.

    Each is a string, an object with ``text`` and, if wanted, the other fields of ``Text``, or an object with
    ``status`` (a number) and, if wanted, the other fields of ``Status``.

    Raises:
        ValueError: the file holds something else.
    """
    content = path.read_text(encoding="utf-8")
    items: Any
    try:
        items = json.loads(content)
    except ValueError:
        items = [json.loads(line) for line in content.splitlines() if line.strip()]
    return [_reply(item) for item in (cast("list[Any]", items) if isinstance(items, list) else [items])]


def _reply(item: Any) -> Reply:
    with suppress(TypeError):
        match item:
            case str():
                return Text(item)
            case {"text": str(text), **others}:
                return Text(text, **others)
            case {"status": int(code), **others}:
                return Status(code, **others)
            case _:
                pass
    raise ValueError(f"a reply is a string, or an object with 'text' or 'status', and not {item!r}")


async def _main(replies: list[Reply], port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with FakeOpenAI(replies, port=port) as server:
        print(server.base_url, flush=True)
        await stop.wait()


def main() -> None:
    """The command line."""
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
