"""Serve MCP over streamable HTTP on this machine. Each client with the token gets its own sandbox."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

from mcp.server.streamable_http import MCP_SESSION_ID_HEADER, StreamableHTTPServerTransport
from mcp.server.transport_security import RequestBodyLimitMiddleware, TransportSecuritySettings
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    UNSUPPORTED_PROTOCOL_VERSION,
    ErrorData,
    JSONRPCError,
    UnsupportedProtocolVersionErrorData,
)
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ...sandbox_image.mcp.server import build
from ...sandbox_image.mcp.session import Settings
from ...sandbox_image.mcp.session_queue import SessionQueue
from .connections import BoundedServer

PATH = "/mcp"
HOST = "127.0.0.1"

_VERSION_HEADER = "mcp-protocol-version"
_GRACE_SECONDS = 2


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """Who may use the server.

    Attributes:
        sessions: the most at once.
        idle: seconds without a request until a session ends.
    """

    token: str
    sessions: int
    idle: float


class Sessions:
    """The ASGI application, with all sessions."""

    def __init__(
        self, open_queue: Callable[[], SessionQueue], settings: Settings, access: AccessPolicy, port: int
    ) -> None:
        self._open_queue = open_queue
        self._settings = settings
        self._access = access
        self._authorization = f"Bearer {access.token}".encode()
        self._security = TransportSecuritySettings(
            allowed_hosts=[f"{host}:{port}" for host in (HOST, "localhost")],
            allowed_origins=[f"http://{host}:{port}" for host in (HOST, "localhost")],
        )
        self._transports: dict[str, StreamableHTTPServerTransport] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # A file as base64, or as JSON with many escapes, may be twice as long.
        self._limited = RequestBodyLimitMiddleware(self._route, 2 * settings.file_limit + (1 << 20))

    async def close(self) -> None:
        """End every session."""
        for transport in list(self._transports.values()):
            await transport.terminate()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        assert scope["type"] == "http"
        # The token comes first. The SDK's transport checks Host and Origin last.
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        if not hmac.compare_digest(given, self._authorization):
            # Its connection ends with the answer, and so takes none of the owner's room.
            headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
            answer = Response("the bearer token is missing or wrong", 401, headers)
            await answer(scope, receive, send)
        elif scope["path"] != PATH:
            await Response(f"not found: use {PATH}", 404)(scope, receive, send)
        else:
            await self._limited(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        revision, name = headers.get(_VERSION_HEADER), headers.get(MCP_SESSION_ID_HEADER)
        # A client falls back to a revision with sessions.
        if revision is not None and revision not in HANDSHAKE_PROTOCOL_VERSIONS:
            await _unsupported_revision(revision)(scope, receive, send)
        elif name is not None:
            transport = self._transports.get(name)
            handle = (
                transport.handle_request
                if transport
                else _refusal("the session is unknown or has ended", 404)
            )
            await handle(scope, receive, send)
        elif scope["method"] != "POST":
            await _refusal("a session begins with a POST of initialize", 400)(scope, receive, send)
        elif len(self._tasks) >= self._access.sessions:
            message = f"all {self._access.sessions} sessions are in use; try again later"
            await _refusal(message, 503, INTERNAL_ERROR)(scope, receive, send)
        else:
            await self._begin(scope, receive, send)

    async def _begin(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = secrets.token_hex(16)
        # JSON, not events: the SDK's client takes no event above 1 MiB, and a file may be larger.
        transport = StreamableHTTPServerTransport(
            name,
            is_json_response_enabled=True,
            security_settings=self._security,
            idle_timeout=self._access.idle,
        )
        connected = asyncio.Event()
        opened = False

        async def watch(message: Message) -> None:
            nonlocal opened
            if message["type"] == "http.response.start":
                opened = message["status"] < 400
            await send(message)

        task = asyncio.get_running_loop().create_task(self._serve(transport, connected))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._transports[name] = transport
        try:
            await connected.wait()
            await transport.handle_request(scope, receive, watch)
        finally:
            # Only a successful `initialize` opens a session.
            if not opened:
                await asyncio.shield(transport.terminate())

    async def _serve(self, transport: StreamableHTTPServerTransport, connected: asyncio.Event) -> None:
        queue = self._open_queue()
        queue.open_ahead()
        server = build(queue, self._settings)
        try:
            async with transport.connect() as (read, write):
                connected.set()
                assert transport.idle_scope is not None
                with transport.idle_scope:
                    await server.run(read, write, server.create_initialization_options())
        finally:
            if not transport.is_terminated:
                await transport.terminate()
            assert transport.mcp_session_id is not None
            del self._transports[transport.mcp_session_id]
            await queue.close()


async def serve_http(
    sessions: Sessions, listener: socket.socket, connections: int, stopped: asyncio.Future[int]
) -> None:
    """Serve a listening socket until ``stopped``, then end all sessions.

    Args:
        connections: the most at once with the token.
    """
    server = BoundedServer.of(sessions, connections, _GRACE_SECONDS)
    serving = asyncio.get_running_loop().create_task(server.serve([listener]))
    try:
        await stopped
    finally:
        server.should_exit = True
        await sessions.close()
        await serving


def _refusal(message: str, status: int, code: int = INVALID_REQUEST) -> Response:
    return _answer(ErrorData(code=code, message=message), status)


def _unsupported_revision(requested: str) -> Response:
    data = UnsupportedProtocolVersionErrorData(
        supported=list(HANDSHAKE_PROTOCOL_VERSIONS), requested=requested
    )
    message = "use a protocol revision with sessions"
    error = ErrorData(code=UNSUPPORTED_PROTOCOL_VERSION, message=message, data=data.model_dump(mode="json"))
    return _answer(error, 400)


def _answer(error: ErrorData, status: int) -> Response:
    body = JSONRPCError(jsonrpc="2.0", id=None, error=error)
    return Response(
        body.model_dump_json(by_alias=True, exclude_unset=True), status, media_type="application/json"
    )
