"""Answer the lines of a client that are no messages; the SDK drops them, and the client would wait."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Protocol, cast

from mcp.shared.message import SessionMessage
from mcp.types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter
from pydantic import ValidationError

from ..text import replace_surrogates


class _Source(Protocol):
    async def receive(self) -> SessionMessage | Exception: ...
    async def aclose(self) -> None: ...


class _Sink(Protocol):
    async def send(self, item: SessionMessage, /) -> None: ...


class ReadableMessages:
    """The stream of a client's messages. A lone surrogate in one is replaced; other lines get an error."""

    def __init__(self, source: _Source, sink: _Sink) -> None:
        self._source = source
        self._sink = sink

    @property
    def last_context(self) -> Any:
        """The context variables of the last message; the SDK asks for them."""
        return getattr(self._source, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        """Return the next message."""
        while True:
            item = await self._source.receive()
            if not isinstance(item, ValidationError):
                return item
            line = item.errors(include_url=False, include_context=False)[0]["input"]
            reply = _read_again(line) if isinstance(line, str) else _refusal(line)
            if isinstance(reply, SessionMessage):
                return reply
            if reply is not None:
                await self._sink.send(SessionMessage(reply))

    async def aclose(self) -> None:
        """Close the stream."""
        await self._source.aclose()

    def __aiter__(self) -> ReadableMessages:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        from anyio import EndOfStream

        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> ReadableMessages:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.aclose()


def _read_again(line: str) -> SessionMessage | JSONRPCError | None:
    if not line.strip():
        return None
    try:
        # It takes lone surrogates, which the SDK's parser refuses.
        value = json.loads(line)
        text = replace_surrogates(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError):
        return _error(None, PARSE_ERROR, "the line is not JSON")
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(text, by_name=False))
    except ValidationError:
        return _refusal(value)


def _refusal(value: Any) -> JSONRPCError:
    name = cast("dict[str, Any]", value).get("id") if isinstance(value, dict) else None
    is_name = isinstance(name, (int, str)) and not isinstance(name, bool)
    return _error(name if is_name else None, INVALID_REQUEST, "the line is no message of JSON-RPC 2.0")


def _error(name: int | str | None, code: int, message: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=name, error=ErrorData(code=code, message=message))
