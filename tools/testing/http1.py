"""HTTP/1.1 for a scripted server: JSON requests, replies whole or in chunks."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import responses
from typing import Any, cast
from urllib.parse import urlsplit

# Bytes of a request's line and headers.
MAX_HEAD = 64 * 1024
# Bytes of a request's body.
MAX_BODY = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        arrived: in seconds of ``time.monotonic``.
        key: the bearer token.
        headers: with names in lower case.
    """

    method: str
    path: str
    body: dict[str, Any]
    arrived: float
    key: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)

    @property
    def model(self) -> str:
        """The requested model, or an empty text."""
        return str(self.body.get("model", ""))


class BadRequestError(Exception):
    """The bytes are no request; ``code`` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


async def read(reader: asyncio.StreamReader) -> tuple[Request, bool]:
    """Return the next request, and whether the connection stays open."""
    try:
        lines_and_end = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise BadRequestError(431, f"the headers are longer than {MAX_HEAD} bytes") from None
    first, *lines = lines_and_end[:-4].decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    target, _, version = rest.partition(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    # Digits only: int() would take signs and spaces too.
    size = headers.get("content-length", "0")
    if not version.startswith("HTTP/1.") or not re.fullmatch(r"[0-9]{1,18}", size):
        raise BadRequestError(400, "the request is not HTTP/1.1")
    if "transfer-encoding" in headers:
        raise BadRequestError(411, "a body needs a Content-Length here")
    # Checked before anything is read.
    if int(size) > MAX_BODY:
        raise BadRequestError(413, f"the body is longer than {MAX_BODY} bytes")
    content = await reader.readexactly(int(size))
    try:
        # A client behind a proxy sends the whole URL.
        path = urlsplit(target).path
        body: Any = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        raise BadRequestError(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise BadRequestError(400, "the body is not a JSON object")
    scheme, _, key = headers.get("authorization", "").partition(" ")
    bearer = key if scheme.lower() == "bearer" else None
    request = Request(method, path, cast("dict[str, Any]", body), time.monotonic(), bearer, headers)
    return request, version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"


def head(code: int, headers: Mapping[str, str]) -> bytes:
    """Return the bytes of a reply before its body."""
    first = f"HTTP/1.1 {code} {responses.get(code, '')}"
    lines = [first, *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def send_body(
    writer: asyncio.StreamWriter, code: int, body: bytes, headers: Mapping[str, str] | None = None
) -> None:
    """Send a whole reply as JSON."""
    standard = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    writer.write(head(code, standard | dict(headers or {})) + body)
    await writer.drain()


async def send_chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send a piece of a chunked body; an empty one ends it."""
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
    await writer.drain()
