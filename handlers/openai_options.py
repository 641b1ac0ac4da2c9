"""Check the options of ``OpenAIHandler``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

OPENAI_URL = "https://api.openai.com/v1"
TOGETHER_URL = "https://api.together.xyz/v1"

# Fields of the body that ``extra_body`` may not set.
_RESERVED_FIELDS = ("messages", "stream", "stream_options")

_CONNECTION_HEADERS = frozenset({
    "connection", "content-length", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def is_at(url: str, *domains: str) -> bool:
    """Return whether a URL is at a domain."""
    host = urlsplit(url).hostname or ""
    return f".{host}".endswith(tuple(f".{domain}" for domain in domains))


def without_secrets(url: str) -> str:
    """Return a URL without its login and query."""
    return re.sub(r"//[^/]*@", "//", url).partition("?")[0]


def endpoint_urls(base_url: str | Sequence[str] | None) -> list[str]:
    """Return the endpoints.

    Raises:
        ValueError: one is empty.
    """
    if base_url is None or isinstance(base_url, str):
        return [base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL]
    urls = list(base_url)
    if not urls or not all(urls):
        raise ValueError("base_url: name at least one endpoint, and none that is empty")
    return list(dict.fromkeys(urls))


def checked_body(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of the body.

    Raises:
        ValueError: one is set by the handler.
    """
    if taken := sorted(fields.keys() & set(_RESERVED_FIELDS)):
        raise ValueError(f"extra_body: {', '.join(taken)} cannot be set here")
    return dict(fields)


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return headers.

    Raises:
        ValueError: one cannot be sent.
    """
    # No message shows a value, which may be a key. ``Authorization`` is spelt as the SDK does, to replace it.
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"extra_headers: {name!r} is no header, or its value is not printable ASCII")
        if name.lower() in _CONNECTION_HEADERS:
            raise ValueError(f"extra_headers: {name} is set by the HTTP library, and cannot be set here")
    return {
        "Authorization" if name.lower() == "authorization" else name: value for name, value in headers.items()
    }
