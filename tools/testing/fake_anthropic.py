"""A server on 127.0.0.1 that speaks Anthropic's Messages API, and answers from a script.

Finish reasons of a script are the API's, such as ``max_tokens``; ``stop`` is ``end_turn``.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from .fake_native import Event, FakeNative
from .http1 import Request
from .replies import Refusal, Reply, Status, Text

# The documented type of each status.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def thinking(text: str) -> dict[str, Any]:
    """Return a block of thoughts, for a ``Stream``."""
    return {"type": "thinking", "thinking": text, "signature": "c2lnbmF0dXJl"}


class FakeAnthropic(FakeNative):
    """The server. ``cached`` is the input tokens that each usage names as (written, read)."""

    cached: tuple[int, int] = (0, 0)

    def _refusal(self, request: Request) -> Reply | None:
        if (request.method, request.path) != ("POST", "/v1/messages"):
            return Status(404, message=f"there is no {request.method} {request.path} here")
        # Old versions of the SDK send the key as x-api-key, new ones as a bearer token.
        if not (request.key or request.headers.get("x-api-key")):
            return Status(401, message="x-api-key is required")
        if "anthropic-version" not in request.headers:
            return Status(400, message="anthropic-version is required")
        match request.body:
            case {"model": str(), "max_tokens": int(), "messages": [{"role": "user"}, *turns]}:
                roles = ["user", *(turn["role"] for turn in turns)]
                alternates = all(one != other for one, other in pairwise(roles))
                if alternates and roles[-1] == "user":
                    return None
                return Status(400, message="messages: roles must alternate, and end with the user's")
            case _:
                return Status(400, message="model, max_tokens and messages are required")

    def _error(self, reply: Status) -> dict[str, Any]:
        kind = reply.code_name or _TYPES.get(reply.code, "api_error")
        message = reply.message or f"the script says {reply.code}"
        return {"type": "error", "error": {"type": kind, "message": message} | dict(reply.fields)}

    def _whole(self, request: Request, reply: Text | Refusal, usage: tuple[int, int]) -> dict[str, Any]:
        finish = self._refused if isinstance(reply, Refusal) else reply.finish_reason
        content = [{"type": "text", "text": reply.text}]
        return self._message(request, content, finish, usage)

    def _begin(self, request: Request, usage: tuple[int, int]) -> Iterable[Event]:
        message = self._message(request, [], None, (usage[0], 1))
        yield "message_start", {"type": "message_start", "message": message}
        yield "ping", {"type": "ping"}

    def _part(self, place: int, part: str | dict[str, Any]) -> Iterable[Event]:
        block = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = block["type"]
        signature = block.get("signature")
        text = block[kind] if kind in ("text", "thinking") else None
        empty = block if text is None else {"type": kind, kind: ""}
        yield "content_block_start", {"type": "content_block_start", "index": place, "content_block": empty}
        deltas = [{"type": f"{kind}_delta", kind: text}] if text is not None else []
        deltas += [{"type": "signature_delta", "signature": signature}] if signature else []
        for delta in deltas:
            yield "content_block_delta", {"type": "content_block_delta", "index": place, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": place}

    def _end(self, request: Request, finish: str, usage: tuple[int, int]) -> Iterable[Event]:
        delta = {"stop_reason": _reason(finish), "stop_sequence": None}
        # The counts of this event are totals.
        yield "message_delta", {"type": "message_delta", "delta": delta, "usage": {"output_tokens": usage[1]}}
        yield "message_stop", {"type": "message_stop"}

    def _message(
        self, request: Request, content: list[Any], finish: str | None, usage: tuple[int, int]
    ) -> dict[str, Any]:
        written, read = self.cached
        return {
            "id": f"msg_{len(self.requests)}",
            "type": "message",
            "role": "assistant",
            "model": request.model,
            "content": content,
            "stop_reason": None if finish is None else _reason(finish),
            "stop_sequence": None,
            "usage": {
                "input_tokens": usage[0],
                "output_tokens": usage[1],
                "cache_creation_input_tokens": written,
                "cache_read_input_tokens": read,
            },
        }


def _reason(finish: str) -> str:
    return "end_turn" if finish == "stop" else finish
