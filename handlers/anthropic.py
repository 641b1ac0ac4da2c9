"""Anthropic's models, through its SDK (extra ``anthropic``)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from .base import Completion, FinishReason, Price, Usage, with_tool_call
from .conversations import Conversation
from .errors import ContextTooLong, HandlerError, NoAccess, Rejected, Unavailable
from .native import (
    NativeHandler,
    Provider,
    TryAgain,
    connection_failure,
    field_of,
    text_of,
    whole_count,
)
from .openai_http import ERROR_EXTENSION
from .openai_replies import BrokenStream, retry_after, without_key
from .retries import REASONS

ANTHROPIC = Provider(
    "anthropic", "https://api.anthropic.com", ("ANTHROPIC_API_KEY",), "anthropic", "anthropic"
)

Effort = Literal["low", "medium", "high", "xhigh", "max"]

_FINISH: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}

# Tokens of an answer, which the API wants; and with thoughts that have no budget of their own.
_ANSWER, _WITH_THOUGHTS = 4096, 16_000

# Characters. Shorter prefixes are not cached: the API wants at least 1,024 tokens.
_CACHED_FROM = 4096

# An error event has no status; each type has one.
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
# The API has no code for these two, only this beginning.
_TOO_LONG = re.compile(r"prompt is too long\b|input length and `max_tokens` exceed context limit")
_NO_CREDIT = re.compile(r"Your credit balance is too low\b")


class AnthropicHandler(NativeHandler):
    """A model of Anthropic. handlers/README.md documents the arguments.

    Raises:
        ValueError: the budget for thoughts is too small, or leaves no tokens for the answer.
    """

    provider = ANTHROPIC

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        api_key_env: str | Mapping[str, str | None] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        thinking: int | Literal["adaptive", "off"] | None = None,
        effort: Effort | None = None,
        prompt_cache: bool = True,
        timeout: float = 120.0,
        max_retries: int = 2,
        max_concurrency: int = 32,
        window: int | None = None,
        price: Price | None = None,
    ) -> None:
        super().__init__(
            model,
            base_url=base_url,
            api_key=api_key,
            api_key_env=api_key_env,
            timeout=timeout,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
            window=window,
            price=price,
        )
        budget = thinking if isinstance(thinking, int) else 0
        if isinstance(thinking, int) and budget < 1024:
            raise ValueError(f'thinking: a budget has at least 1024 tokens, or "off"; it is {budget}')
        most = max_tokens or (_WITH_THOUGHTS if thinking == "adaptive" or effort else _ANSWER + budget)
        if most <= budget:
            raise ValueError(f"max_tokens ({most}) must be above the tokens for thinking ({budget})")
        self.max_tokens = most
        self.samples = temperature != 0
        self._options: dict[str, Any] = {"model": model, "max_tokens": most}
        if temperature is not None:
            self._options["extra_body"] = {"temperature": temperature}
        if thinking is not None:
            self._options["thinking"] = _thinking(thinking)
        if effort is not None:
            # By extra_body: older SDKs have no argument for it.
            self._options["extra_body"] = self._options.get("extra_body", {}) | {
                "output_config": {"effort": effort}
            }
        self._prompt_cache = prompt_cache

    def identity(self) -> dict[str, Any]:
        """See ``ModelHandler.identity``."""
        return {"handler": "anthropic", "base_url": self.base_url} | self._options

    def _client_class(self) -> Any:
        from anthropic import DefaultAsyncHttpxClient

        return DefaultAsyncHttpxClient

    def _make_client(self, http: Any, key: str) -> Any:
        from anthropic import AsyncAnthropic, Omit

        headers: Any = {}
        if urlsplit(self._url).hostname != urlsplit(ANTHROPIC.url).hostname:
            # They are meant for Anthropic, and may hold a key.
            lines = os.environ.get("ANTHROPIC_CUSTOM_HEADERS", "").splitlines()
            own = {"authorization": f"Bearer {key}", "x-api-key": key}
            names = [line.partition(":")[0].strip() for line in lines if ":" in line]
            headers = {name: own.get(name.lower(), Omit()) for name in names}
        return AsyncAnthropic(
            api_key=key,
            base_url=self._url,
            timeout=http.timeout,
            max_retries=0,
            default_headers=headers,
            http_client=http,
        )

    def _request(self, conversation: Conversation, sizes: Sequence[int]) -> dict[str, Any]:
        turns = [{"role": turn["role"], "content": _block(turn["content"])} for turn in conversation.turns]
        request = self._options | {"messages": turns}
        if conversation.system:
            request["system"] = _block(conversation.system)
            if self._prompt_cache and sizes[0] >= _CACHED_FROM:
                _mark(request["system"])
        # A conversation that went on will go on again: the next call reads what this one writes. A first
        # question, as each of a worker's, would only pay for the writing.
        if self._prompt_cache and len(turns) > 1 and sum(sizes) >= _CACHED_FROM:
            _mark(turns[-1]["content"])
        return request

    async def _ask(
        self, client: Any, request: dict[str, Any], on_text: Callable[[str], None] | None
    ) -> Completion:
        answer = _Answer()
        if on_text is None:
            answer.add_message(await client.messages.create(**request))
            return answer.completion()
        stream = await client.messages.create(**request, stream=True)
        try:
            async for event in stream:
                if text := answer.add_event(event):
                    on_text(text)
        finally:
            await stream.close()
        if not answer.ended:
            raise BrokenStream(f"{self._who()}: the stream ended before the answer did")
        return answer.completion()

    def _translate(self, error: Exception, key: str) -> HandlerError | None:
        return translate(error, self._who(), key)


def translate(error: Exception, who: str, key: str = "") -> HandlerError | None:
    """Return the SDK's exception as one of ours, without the key; None if it is another's."""
    import anthropic

    if not isinstance(error, anthropic.AnthropicError):
        return None
    if isinstance(error, anthropic.APIStatusError):
        if (ours := error.response.extensions.get(ERROR_EXTENSION)) is not None:
            return cast("HandlerError", ours)
        body: object = error.body
        kind, words = field_of(body, "error", "type"), field_of(body, "error", "message")
        words = words if isinstance(words, str) and words else error.message
        status = int(error.status_code)
        if status < 400:
            status = _STATUS.get(str(kind), 500)
        said = f"{who} answered {status}: {without_key(key, words)}"
        return _error_of(status, said, words, error.response.headers)
    if isinstance(error, anthropic.APIConnectionError):
        found = connection_failure(error.__cause__, who)
        if found is not None:
            return found
        timed_out = isinstance(error, anthropic.APITimeoutError)
        what = "timed out" if timed_out else "failed"
        return TryAgain(f"{who}: the connection {what}", reason="timeout" if timed_out else None)
    if isinstance(error, anthropic.APIResponseValidationError):
        return Unavailable(f"{who} sent a reply that cannot be understood")
    return Rejected(f"{who}: {type(error).__name__}: {without_key(key, error)}")


def _error_of(status: int, said: str, words: str, headers: Mapping[str, str]) -> HandlerError:
    if status == 413 or (status == 400 and _TOO_LONG.match(words)):
        return ContextTooLong(said)
    if status in (401, 402, 404) or _NO_CREDIT.match(words):
        hint = " (the key is ANTHROPIC_API_KEY's, or api_key_env's)" if status == 401 else ""
        return NoAccess(said + hint)
    # A permission is of the key and the account, and not of one text.
    if status == 403:
        return NoAccess(said)
    if status in (408, 409, 429) or status >= 500:
        return TryAgain(said, retry_after=retry_after(headers), reason=REASONS.get(status))
    return Rejected(said)


class _Answer:
    """Collects a message, whole or from its events."""

    def __init__(self) -> None:
        self.ended = False
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._stop: object = None
        self._used: dict[str, int] = {}
        self._tool = False

    def add_message(self, message: Any) -> None:
        """Add a whole message."""
        for block in message.content:
            self._begin(block)
        self._stop = message.stop_reason
        self._count(message.usage)

    def add_event(self, event: Any) -> str:
        """Add an event of a stream and return its text."""
        match event.type:
            case "message_start":
                self._count(event.message.usage)
            case "content_block_start":
                return self._begin(event.content_block)
            case "content_block_delta" if event.delta.type == "text_delta":
                self._text.append(text_of(event.delta.text))
                return self._text[-1]
            case "content_block_delta" if event.delta.type == "thinking_delta":
                self._thoughts.append(text_of(event.delta.thinking))
            case "message_delta":
                self._stop = event.delta.stop_reason or self._stop
                self._count(event.usage)
            case "message_stop":
                self.ended = True
            case _:
                # Signatures, and events that a later version of the API may add.
                pass
        return ""

    def _begin(self, block: Any) -> str:
        match block.type:
            case "text":
                self._text.append(text_of(block.text))
                return self._text[-1]
            case "thinking":
                self._thoughts.append(text_of(block.thinking))
            case str(kind) if "tool_use" in kind:
                # Also server_tool_use and mcp_tool_use.
                self._tool = True
            case _:
                pass
        return ""

    # The counts of later events are totals.
    def _count(self, usage: Any) -> None:
        for name in (
            "input_tokens",
            "output_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
        ):
            if (count := whole_count(getattr(usage, name, None))) or name not in self._used:
                self._used[name] = count
        thoughts = getattr(getattr(usage, "output_tokens_details", None), "thinking_tokens", None)
        self._used["thinking"] = whole_count(thoughts) or self._used.get("thinking", 0)

    def completion(self) -> Completion:
        """Return the completion.

        Raises:
            OnlyToolCall: it has no text.
        """
        text, used = "".join(self._text), self._used
        written, read = used["cache_creation_input_tokens"], used["cache_read_input_tokens"]
        usage = Usage(
            # The API counts cached tokens beside the others.
            used["input_tokens"] + written + read,
            used["output_tokens"],
            1,
            cache_read_tokens=read,
            cache_write_tokens=written,
            reasoning_tokens=used["thinking"],
        )
        finish = _FINISH.get(str(self._stop), "other")
        completion = Completion(text, usage, finish, "".join(self._thoughts))
        return with_tool_call(completion) if self._tool or self._stop == "tool_use" else completion


def _thinking(thinking: int | str) -> dict[str, Any]:
    if isinstance(thinking, int):
        return {"type": "enabled", "budget_tokens": thinking}
    # Without ``display``, some models send no thoughts, only their signature.
    return {"type": "adaptive", "display": "summarized"} if thinking == "adaptive" else {"type": "disabled"}


def _block(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def _mark(blocks: Any) -> None:
    blocks[-1]["cache_control"] = {"type": "ephemeral"}
