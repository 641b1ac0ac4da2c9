"""What the fakes of native protocols share: the stream of events around the parts of a reply."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, cast

from .fake_openai import FakeOpenAI, as_stream
from .http1 import MAX_HEAD, Request, head, send_body, send_chunk
from .replies import Drop, Endless, Malformed, Part, Refusal, Shape, Status, Stream, Text

# An event's name, None for an event without one, and its data.
Event = tuple[str | None, Any]


class FakeNative(FakeOpenAI):
    """A scripted server of another protocol. A dict in a ``Stream`` is a part of a message in that protocol.

    Usage of a reply is (input, output) tokens; ``Shape`` is a whole reply, or an event.
    """

    # The SDKs add the version.
    _root = ""
    # Why a reply ended that refuses.
    _refused = "refusal"

    def _whole(self, request: Request, reply: Text | Refusal, usage: tuple[int, int]) -> dict[str, Any]:
        raise NotImplementedError

    def _begin(self, request: Request, usage: tuple[int, int]) -> Iterable[Event]:
        raise NotImplementedError

    def _part(self, place: int, part: str | dict[str, Any]) -> Iterable[Event]:
        raise NotImplementedError

    def _end(self, request: Request, finish: str, usage: tuple[int, int]) -> Iterable[Event]:
        raise NotImplementedError

    def _error_event(self, status: Status) -> Event:
        return "error", self._error(status)

    def _as_stream(self, reply: Text | Refusal | Stream) -> Stream:
        if isinstance(reply, Refusal):
            reply = Text(reply.text, self._refused, usage=reply.usage)
        return as_stream(reply)

    async def _send_completion(
        self, writer: asyncio.StreamWriter, request: Request, reply: Text | Refusal
    ) -> None:
        usage = self._counts(request, reply.text, reply.usage)
        await send_body(writer, 200, json.dumps(self._whole(request, reply, usage)).encode())
        self._bill(request, {"prompt_tokens": usage[0], "completion_tokens": usage[1]})

    async def _send_stream(self, writer: asyncio.StreamWriter, request: Request, reply: Stream) -> bool:
        text = "".join(part for part in reply.parts if isinstance(part, str))
        usage = self._counts(request, text, reply.usage)
        writer.write(head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}))
        await _send(writer, self._begin(request, usage))
        for place, part in enumerate(reply.parts):
            if not await self._send_part(writer, place, part):
                return False
        await _send(writer, self._end(request, reply.finish_reason or "", usage))
        await send_chunk(writer, b"")
        self._bill(request, {"prompt_tokens": usage[0], "completion_tokens": usage[1]})
        return True

    async def _send_part(self, writer: asyncio.StreamWriter, place: int, part: Part) -> bool:
        """Send a part; return whether the stream goes on."""
        match part:
            case str() | dict():
                await _send(writer, self._part(place, part))
            case Shape(value):
                name: object = (
                    cast("dict[str, object]", value).get("type") if isinstance(value, dict) else None
                )
                event: Event = (name if isinstance(name, str) else None, cast("object", value))
                await _send(writer, [event])
            case Malformed(body):
                await send_chunk(writer, b"event: content_block_delta\ndata: " + body + b"\n\n")
            case Status():
                await _send(writer, [self._error_event(part)])
            case Drop(count):
                writer.write(b" " * count)
                return False
            case Endless(limit, pause):
                for _ in range(0, limit, MAX_HEAD):
                    await send_chunk(writer, b":" * MAX_HEAD + b"\n")
                    await asyncio.sleep(pause)
                return False
        return True

    def _counts(self, request: Request, text: str, given: tuple[int, int] | None) -> tuple[int, int]:
        return given or (len(json.dumps(request.body).split()), len(text.split()))


async def _send(writer: asyncio.StreamWriter, events: Iterable[Event]) -> None:
    for name, data in events:
        line = b"" if name is None else f"event: {name}\n".encode()
        await send_chunk(writer, line + b"data: " + json.dumps(data).encode() + b"\n\n")
