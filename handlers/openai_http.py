"""The SDK's HTTP client, with bounds on the bytes and seconds of a reply."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import Unavailable

if TYPE_CHECKING:
    from ssl import SSLContext

    from .openai_bodies import CodedContents

# Bytes of a reply, or of an event of a stream, unpacked. The SDK decodes it at once, in some 10 ms. The
# longest answers have a tenth of it.
MAX_REPLY = 2 * 1024 * 1024

# Bytes of a stream, which has an event for each token.
MAX_STREAM = 16 * 1024 * 1024

# Bytes of a reply that is no success. Only its message is read.
_MAX_ERROR = 64 * 1024

# Bytes that the SDK decodes before the event loop runs: 4 KiB are a thousand of the shortest events.
_PIECE = 4 * 1024
_EVENT_END = re.compile(rb"\r\r|\n\n|\n\r\n")

# Seconds to connect. An answer may take far longer, but a host that is gone never replies.
_CONNECT = 10.0


# Types of bodies that are no stream.
_NO_STREAM = frozenset({"application/json", "text/html"})

# Key of a response's extensions that holds an error of this client.
ERROR_EXTENSION = "supdist_error"

# The same for a response whose status was 200, and whose body says another.
IN_REPLY_EXTENSION = "supdist_in_reply"


def http_library() -> Any:
    """Return the SDK's HTTP library, ``httpx2`` or ``httpx``."""
    return _library_of(_client_class_of_openai())


def _client_class_of_openai() -> type:
    from openai import DefaultAsyncHttpxClient

    return DefaultAsyncHttpxClient


def _library_of(client_class: type) -> Any:
    roots = [kind.__module__.partition(".")[0] for kind in client_class.__mro__]
    return import_module(next(root for root in roots if root.startswith("httpx")))


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
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        event = _EventSize()
        try:
            while True:
                async with asyncio.timeout_at(self._deadline):
                    part = await self._next(MAX_STREAM)
                for start in range(0, len(part), _PIECE):
                    piece = part[start : start + _PIECE]
                    event.add(piece)
                    yield piece
                    await asyncio.sleep(0)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise Unavailable("the endpoint's reply did not end in time") from error

    async def read(self) -> bytes:
        """Return the rest. The caller has the deadline."""
        parts: list[bytes] = []
        try:
            while True:
                parts.append(await self._next(MAX_REPLY))
        except StopAsyncIteration:
            return b"".join(parts)
        finally:
            await self.aclose()

    async def _next(self, most: int) -> bytes:
        part = await anext(self._parts)
        self._size += len(part)
        if self._size > most:
            raise Unavailable(f"the endpoint's reply is longer than {most} bytes")
        return part

    async def aclose(self) -> None:
        # Google's SDK leaves a broken stream to the garbage collector, after the handler has closed it.
        if self._closed:
            return
        self._closed = True
        await self._parts.aclose()
        await self._response.aclose()


class _Upload:
    """A request's body. A redirect or a new connection may send it again."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
            await asyncio.sleep(0)


class _EventSize:
    """Counts the bytes of a stream since the last end of an event."""

    def __init__(self) -> None:
        self._size = 0
        self._tail = b""

    def add(self, piece: bytes) -> None:
        """Count a piece.

        Raises:
            Unavailable: the event is too long.
        """
        # An end may lie across two pieces.
        seen = self._tail + piece
        ends = [found.end() for found in _EVENT_END.finditer(seen)]
        self._size = len(seen) - ends[-1] if ends else self._size + len(piece)
        self._tail = seen[-2:]
        if self._size > MAX_REPLY:
            raise Unavailable(f"an event of the endpoint's stream is longer than {MAX_REPLY} bytes")


def bounded_client(
    context: SSLContext,
    timeout: float,
    connections: int,
    admit: Callable[[], Awaitable[CodedContents | None]],
    *,
    follow_redirects: bool,
    client_class: Any = None,
    on_stream: Callable[[Any], None] = lambda _: None,
    on_failure: Callable[[int | Exception], None] = lambda _: None,
) -> Any:
    """Return an HTTP client that bounds the bytes and seconds of an attempt.

    Args:
        timeout: seconds of silence; an attempt may take twice as long.
        connections: how many are kept open.
        admit: awaited before each attempt. It returns what replaces the marks in the body.
        client_class: the class of the SDK; OpenAI's by default.
        on_stream, on_failure: get each stream's body; the status or exception of each failed attempt.
    """
    base: Any = client_class or _client_class_of_openai()
    library = _library_of(base)
    body_class, upload_class = _stream_classes(library.AsyncByteStream)

    class BoundedClient(base):
        async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
            if (contents := await admit()) is not None:
                request = _with_pieces(request, contents.put_into(request.content), upload_class)
            try:
                response = await self._bounded_send(request, stream, options)
            except Unavailable as error:
                return _failure(library, request, error)
            except library.HTTPError as error:
                on_failure(error)
                raise
            if not response.is_success:
                on_failure(response.status_code)
            return response

        async def _bounded_send(self, request: Any, stream: bool, options: dict[str, Any]) -> Any:
            deadline = asyncio.get_running_loop().time() + 2 * timeout
            try:
                async with asyncio.timeout_at(deadline):
                    response: Any = await base.send(self, request, stream=True, **options)
                    body = body_class(response, deadline)
                    if stream and response.is_success and not _is_whole(response):
                        on_stream(body)
                        return _with_body(response, stream=body)
                    content = await body.read()
            except TimeoutError as error:
                raise Unavailable("the endpoint's reply did not end in time") from error
            return _with_content(response, content)

    return BoundedClient(
        verify=context,
        timeout=library.Timeout(timeout, connect=min(timeout, _CONNECT), pool=None),
        # At a redirect to another host, the library drops only ``Authorization``.
        follow_redirects=follow_redirects,
        limits=library.Limits(max_connections=None, max_keepalive_connections=connections),
    )


def _stream_classes(byte_stream: Any) -> tuple[type[_BoundedBody], type[_Upload]]:
    class Body(_BoundedBody, byte_stream):
        """What the library takes for a body."""

    class Upload(_Upload, byte_stream):
        """The same for a request."""

    return Body, Upload


def _failure(library: Any, request: Any, error: Unavailable) -> Any:
    # An SDK before 3.15 retries after any exception, but not after this response.
    headers = {"x-should-retry": "false"}
    return library.Response(502, headers=headers, request=request, extensions={ERROR_EXTENSION: error})


def _with_pieces(request: Any, pieces: list[bytes], upload: Callable[[list[bytes]], Any]) -> Any:
    headers = request.headers.copy()
    headers["content-length"] = str(sum(map(len, pieces)))
    return type(request)(
        request.method, request.url, headers=headers, stream=upload(pieces), extensions=request.extensions
    )


def _with_content(response: Any, content: bytes) -> Any:
    if response.is_success and (status := _status_in(content)) is not None:
        # Then the SDK waits and tries again as it does for such a status.
        response.status_code = status
        response.extensions[IN_REPLY_EXTENSION] = True
    if not response.is_success:
        content = content[:_MAX_ERROR]
    # No retry brings back a spent quota.
    if response.status_code == 429 and _is_spent_quota(content):
        response.headers["x-should-retry"] = "false"
    return _with_body(response, content=content)


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


class WholeReply(NamedTuple):
    """A reply in place of a stream: JSON, or the text of a page."""

    reply: Any


async def whole_reply(response: Any) -> WholeReply | None:
    """Return what an endpoint sent that does not stream; None for a stream."""
    if not _is_whole(response):
        return None
    content: bytes = await response.aread()
    if content.lstrip()[:1] not in (b"{", b"[", b"<"):
        return None
    try:
        return WholeReply(json.loads(content))
    except (ValueError, RecursionError):
        return WholeReply(content.decode("utf-8", "replace"))


def _is_whole(response: Any) -> bool:
    # An error, or a page, in place of a stream.
    return response.headers.get("content-type", "").partition(";")[0].strip() in _NO_STREAM


def _status_in(body: bytes) -> int | None:
    """Return the status that an error in the body of a success names."""
    if len(body) > _MAX_ERROR or b'"error"' not in body:
        return None
    try:
        reply: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    match reply:
        case {"choices": [_, *_]}:
            return None
        case {"error": {"code": int(code)}} if 400 <= code < 600:
            return code
        case {"error": {"code": str(code)}} if re.fullmatch("[45][0-9][0-9]", code):
            return int(code)
        case _:
            return None


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
