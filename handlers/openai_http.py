"""The SDK's HTTP client, with bounds on the bytes and seconds of a reply."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import Unavailable

if TYPE_CHECKING:
    from ssl import SSLContext

# Bytes of one reply, unpacked. The longest answers have a hundredth of it.
MAX_REPLY = 16 * 1024 * 1024

# Seconds to connect. An answer may take far longer, but a host that is gone never replies.
_CONNECT = 10.0


# Key of a response's extensions that holds an error of this client.
ERROR_EXTENSION = "supdist_error"


def http_library() -> Any:
    """Return the SDK's HTTP library, ``httpx2`` or ``httpx``."""
    from openai import DefaultAsyncHttpxClient

    roots = [kind.__module__.partition(".")[0] for kind in DefaultAsyncHttpxClient.__mro__]
    return import_module(next(root for root in roots if root != "openai"))


def load_library() -> SSLContext:
    """Import the SDK (a second) and load certificates (50 ms)."""
    import_module("openai.resources.chat.completions")
    context: SSLContext = http_library().create_ssl_context()
    return context


class _BoundedBody:
    def __init__(self, response: Any, deadline: float) -> None:
        self._response = response
        self._parts: AsyncGenerator[bytes] = response.aiter_bytes()
        self._deadline = deadline
        self._size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                async with asyncio.timeout_at(self._deadline):
                    part = await self._next()
                yield part
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise Unavailable("the endpoint's reply did not end in time") from error

    async def read(self) -> bytes:
        """Return the rest. The caller has the deadline."""
        parts: list[bytes] = []
        try:
            while True:
                parts.append(await self._next())
        except StopAsyncIteration:
            return b"".join(parts)
        finally:
            await self.aclose()

    async def _next(self) -> bytes:
        part = await anext(self._parts)
        self._size += len(part)
        if self._size > MAX_REPLY:
            raise Unavailable(f"the endpoint's reply is longer than {MAX_REPLY} bytes")
        return part

    async def aclose(self) -> None:
        await self._parts.aclose()
        await self._response.aclose()


def bounded_client(
    context: SSLContext,
    timeout: float,
    connections: int,
    admit: Callable[[], Awaitable[None]],
    *,
    follow_redirects: bool,
) -> Any:
    """Return an HTTP client that bounds the bytes and seconds of an attempt.

    Args:
        timeout: seconds of silence; an attempt may take twice as long.
        connections: how many are kept open.
        admit: awaited before each attempt.
    """
    from openai import DefaultAsyncHttpxClient, Timeout

    library = http_library()
    byte_stream: Any = library.AsyncByteStream

    class Body(_BoundedBody, byte_stream):
        """What the library takes for a body."""

    class BoundedClient(DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            await admit()
            try:
                return await self._bounded_send(request, stream, options)
            except Unavailable as error:
                # An SDK before 3.15 retries after any exception, but not after this response.
                return library.Response(
                    502,
                    headers={"x-should-retry": "false"},
                    request=request,
                    extensions={ERROR_EXTENSION: error},
                )

        async def _bounded_send(self, request: Any, stream: bool, options: dict[str, Any]) -> Any:
            deadline = asyncio.get_running_loop().time() + 2 * timeout
            try:
                async with asyncio.timeout_at(deadline):
                    response = await super().send(request, stream=True, **options)
                    body = Body(response, deadline)
                    if stream and response.is_success:
                        return _with_body(response, stream=body)
                    content = await body.read()
            except TimeoutError as error:
                raise Unavailable("the endpoint's reply did not end in time") from error
            # No retry brings back a spent quota.
            if response.status_code == 429 and _is_spent_quota(content):
                response.headers["x-should-retry"] = "false"
            return _with_body(response, content=content)

    return BoundedClient(
        verify=context,
        timeout=Timeout(timeout, connect=min(timeout, _CONNECT), pool=None),
        # At a redirect to another host, the library drops only ``Authorization``.
        follow_redirects=follow_redirects,
        limits=library.Limits(max_connections=None, max_keepalive_connections=connections),
    )


def _with_body(response: Any, **body: Any) -> Any:
    # The content is unpacked already.
    response.headers.pop("content-encoding", None)
    return type(response)(
        response.status_code,
        headers=response.headers,
        request=response.request,
        extensions=response.extensions,
        **body,
    )


def _is_spent_quota(body: bytes) -> bool:
    try:
        reply: Any = json.loads(body)
    except (ValueError, RecursionError):
        return False
    match reply:
        case {"error": {"code": "insufficient_quota"}}:
            return True
        case _:
            return False
