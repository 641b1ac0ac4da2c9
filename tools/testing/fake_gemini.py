"""A server on 127.0.0.1 that speaks Gemini's generateContent, and answers from a script.

Finish reasons of a script are the API's: ``STOP``, ``MAX_TOKENS``, ``SAFETY`` …; ``stop`` is ``STOP``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .fake_native import Event, FakeNative
from .http1 import Request
from .replies import Refusal, Reply, Status, Text

_PATH = re.compile(r"/v1beta/models/[^/:]+:(generateContent|streamGenerateContent)")

# The names of google.rpc.Code.
_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def thinking(text: str) -> dict[str, Any]:
    """Return a part of thoughts, for a ``Stream``."""
    return {"text": text, "thought": True}


def blocked(reason: str = "SAFETY") -> dict[str, Any]:
    """Return the whole reply to a prompt that was refused, for a ``Shape``."""
    return {"promptFeedback": {"blockReason": reason}, "usageMetadata": {"promptTokenCount": 7}}


class FakeGemini(FakeNative):
    """The server. ``cached`` and ``thought`` are the tokens that each usage names beside the others."""

    _refused = "SAFETY"
    cached = 0
    thought = 0

    def _refusal(self, request: Request) -> Reply | None:
        if request.method != "POST" or not _PATH.fullmatch(request.path):
            return Status(404, message=f"there is no {request.method} {request.path} here")
        if "x-goog-api-key" not in request.headers:
            return Status(403, message="x-goog-api-key is required")
        match request.body:
            case {"contents": [{"role": "user", "parts": list()}, *_]}:
                return None
            case _:
                return Status(400, message="contents must begin with the user's")

    def _is_stream(self, request: Request) -> bool:
        return request.path.endswith(":streamGenerateContent")

    def _error(self, reply: Status) -> dict[str, Any]:
        message = reply.message or f"the script says {reply.code}"
        name = reply.code_name or _NAMES.get(reply.code, "UNKNOWN")
        return {"error": {"code": reply.code, "message": message, "status": name} | dict(reply.fields)}

    def _error_event(self, status: Status) -> Event:
        return None, self._error(status)

    def _whole(self, request: Request, reply: Text | Refusal, usage: tuple[int, int]) -> dict[str, Any]:
        finish = self._refused if isinstance(reply, Refusal) else reply.finish_reason
        return self._chunk([{"text": reply.text}], finish) | self._usage_metadata(usage)

    def _begin(self, request: Request, usage: tuple[int, int]) -> Iterable[Event]:
        return ()

    def _part(self, place: int, part: str | dict[str, Any]) -> Iterable[Event]:
        yield None, self._chunk([{"text": part} if isinstance(part, str) else part], None)

    def _end(self, request: Request, finish: str, usage: tuple[int, int]) -> Iterable[Event]:
        yield None, self._chunk([], finish) | self._usage_metadata(usage)

    def _chunk(self, parts: list[Any], finish: str | None) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
        if finish is not None:
            candidate["finishReason"] = "STOP" if finish == "stop" else finish
        return {"candidates": [candidate], "modelVersion": "fake"}

    def _usage_metadata(self, usage: tuple[int, int]) -> dict[str, Any]:
        counts = {
            "promptTokenCount": usage[0],
            "candidatesTokenCount": usage[1],
            "cachedContentTokenCount": self.cached,
            "thoughtsTokenCount": self.thought,
        }
        return {"usageMetadata": counts}
