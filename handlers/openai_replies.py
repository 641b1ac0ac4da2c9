"""Turn the SDK's replies and exceptions into our completions and errors."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from .base import Completion, FinishReason, Usage
from .errors import (
    ContextTooLong,
    HandlerError,
    NoAccess,
    Rejected,
    Unavailable,
    UnavailableReason,
    Unreachable,
)
from .openai_http import ERROR_EXTENSION, http_library

if TYPE_CHECKING:
    from openai import APIConnectionError, APIError, OpenAIError

_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length", "content_filter": "refusal"}

# Characters: a shorter key is no secret, and may be a word.
_SHORTEST_KEY = 8

# Characters of an endpoint's words in a message.
_MAX_MESSAGE = 2000

# Fields that mean that the messages are too long. Prose is not read, since it changes.
_TOO_LONG_CODE = "context_length_exceeded"  # OpenAI, and those that copy its codes
_TOO_LONG_TYPE = "exceed_context_size_error"  # llama.cpp's server
_TOO_LONG_PARAMS = ("input_tokens", "input_text")  # vLLM's server: BadRequestError for one of these


_REASONS: dict[int, UnavailableReason] = {408: "timeout", 429: "rate_limit", 504: "timeout"}

# Wrong key, no credit, no such model. Not 403: some endpoints send it for a single text that they flag.
_NO_ACCESS = (401, 402, 404)


class BrokenStream(Unavailable):
    """A stream ended before the answer did."""


class CompletionBuilder:
    """Collects the parts of a completion."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._content = self._refusal = self._tools = False
        self._finish: FinishReason | None = None
        self._used = (0, 0)

    def add_whole(self, reply: Any) -> None:
        """Add a whole reply.

        Raises:
            Unavailable: it has another shape.
        """
        with _expected_shape():
            self._add(reply.choices[0].message, reply.choices[0].finish_reason)
            self._count(reply.usage)

    def add_chunk(self, chunk: Any) -> str:
        """Add an event of a stream and return its text.

        Raises:
            Unavailable: it has another shape.
        """
        with _expected_shape():
            if chunk.usage is not None:
                self._count(chunk.usage)
            # The event with the usage has no choice.
            choices = list(chunk.choices or ())[:1]
            return "".join(self._add(choice.delta, choice.finish_reason) for choice in choices)

    def _add(self, part: Any, finish_reason: Any) -> str:
        text = part.content or part.refusal or ""
        if not isinstance(text, str):
            raise TypeError(text)
        self._text.append(text)
        self._reasoning.append(_reasoning(part))
        self._content |= bool(part.content)
        self._refusal |= bool(part.refusal)
        self._tools |= bool(part.tool_calls)
        if finish_reason is not None:
            self._finish = _FINISH.get(finish_reason, "other")
        return text

    def _count(self, usage: Any) -> None:
        used = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
        if not all(type(count) is int and 0 <= count < 2**53 for count in used):
            raise TypeError(used)
        self._used = used

    def completion(self, *, streamed: bool) -> Completion:
        """Return the completion.

        Raises:
            BrokenStream: its end is missing.
            Rejected: it is a tool call.
        """
        text = "".join(self._text)
        if streamed and self._finish is None:
            raise BrokenStream("the endpoint's stream ended before the answer did")
        if self._tools and not text:
            raise Rejected(
                "the model answered with a tool call and no text; nothing here offers it tools: take `tools`"
                " out of extra_body, or switch automatic tools off at the endpoint"
            )
        refused = self._refusal and not self._content
        finish = "refusal" if refused else self._finish or "other"
        return Completion(text, Usage(*self._used, 1), finish, "".join(self._reasoning))


def parse_reply(reply: Any) -> Completion:
    """Return the completion of a whole reply.

    Raises:
        Unavailable: it holds none.
        Rejected: it is a tool call.
    """
    answer = CompletionBuilder()
    answer.add_whole(reply)
    return answer.completion(streamed=False)


def _reasoning(part: Any) -> str:
    more: dict[str, Any] = part.model_extra or {}
    found = more.get("reasoning_content") or more.get("reasoning")
    return found if isinstance(found, str) else ""


@contextmanager
def _expected_shape() -> Generator[None]:
    # The SDK does not validate replies: any field may be missing.
    try:
        yield
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise Unavailable("the endpoint sent a reply without the fields of a completion") from error


def translate(error: OpenAIError, key: str = "") -> HandlerError:
    """Return the SDK's exception as one of ours, without the key."""
    import openai

    if isinstance(error, openai.APIStatusError):
        if (ours := error.response.extensions.get(ERROR_EXTENSION)) is not None:
            return ours
        status = int(error.status_code)
        said = f"the endpoint answered {status}: {without_key(key, _message(error))}"
        return _translate(error, status, said, error.response.headers)
    if isinstance(error, openai.APIConnectionError):
        return _connection_error(error, isinstance(error, openai.APITimeoutError))
    if isinstance(error, openai.APIResponseValidationError):
        return Unavailable("the endpoint sent a reply that cannot be understood")
    # An error event in a stream: the status was 200.
    if isinstance(error, openai.APIError):
        said = f"the endpoint broke off its stream: {without_key(key, error.message)}"
        return _translate(error, _status_in(error), said, {})
    return Rejected(f"{type(error).__name__}: {without_key(key, error)}")


def _connection_error(error: APIConnectionError, timed_out: bool) -> Unavailable:
    library, cause = http_library(), error.__cause__
    message = f"the connection to the endpoint {'timed out' if timed_out else 'failed'}"
    not_made = (library.ConnectError, library.ConnectTimeout, library.ProxyError, library.UnsupportedProtocol)
    # Otherwise it broke off later, and the endpoint may have read the request.
    if cause is None or not isinstance(cause, not_made):
        return Unavailable(message, reason="timeout" if timed_out else None)
    url, why = error.request.url, system_words(cause)
    # Without a scheme there is no host, and no login either.
    where = url.netloc.decode() or str(url).partition("?")[0]
    return Unreachable(f"{message}: {where}: {why}")


def system_words(error: BaseException) -> str:
    """Return why a connection failed."""
    # The HTTP libraries say "All connection attempts failed" for what the system said.
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.errno is not None:
            words = inner.strerror or str(inner)
            # asyncio's words have the address again, and not the reason.
            return os.strerror(inner.errno) if words.startswith("Connect call failed") else words
        inner = inner.__cause__ or inner.__context__
    return str(error)


def _message(error: APIError) -> str:
    match error.body:
        case {"message": str(message)}:
            return message
        case _:
            return error.message


def without_key(key: str, words: object) -> str:
    """Return an endpoint's words, cut, and without the key."""
    text = str(words)
    return (text.replace(key, "***") if len(key) >= _SHORTEST_KEY else text)[:_MAX_MESSAGE]


# SGLang and older vLLM say it only in prose: give the handler a ``window`` there.
def _translate(error: APIError, status: int, message: str, headers: Mapping[str, str]) -> HandlerError:
    if error.code == _TOO_LONG_CODE or error.type == _TOO_LONG_TYPE or status == 413:
        return ContextTooLong(message)
    if status == 400 and error.param in _TOO_LONG_PARAMS:
        return ContextTooLong(message)
    if error.code == "insufficient_quota" or status in _NO_ACCESS:
        return NoAccess(message)
    if status in (408, 409, 429) or status >= 500:
        reason = _REASONS.get(status)
        return Unavailable(message, retry_after=retry_after(headers), reason=reason)
    return Rejected(message)


def _status_in(error: APIError) -> int:
    # vLLM puts the status into ``code``.
    code = str(error.code)
    if code.isascii() and code.isdigit() and len(code) == 3:
        return int(code)
    return 400 if error.type == "invalid_request_error" else 500


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an endpoint asks to wait."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
