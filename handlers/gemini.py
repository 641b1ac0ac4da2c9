"""Google's Gemini models, through its SDK google-genai (extra ``gemini``)."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, cast

from .base import Completion, FinishReason, Price, Usage, with_tool_call
from .conversations import Conversation
from .errors import ContextTooLong, HandlerError, NoAccess, Rejected
from .native import NativeHandler, Provider, TryAgain, field_of, text_of, whole_count
from .openai_http import ERROR_EXTENSION
from .openai_replies import BrokenStream, retry_after, without_key
from .retries import REASONS

GEMINI = Provider(
    "gemini",
    "https://generativelanguage.googleapis.com",
    ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "google.genai",
    "gemini",
)

Effort = Literal["minimal", "low", "medium", "high"]

_FINISH: Mapping[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "refusal",
    "RECITATION": "refusal",
    "LANGUAGE": "refusal",
    "BLOCKLIST": "refusal",
    "PROHIBITED_CONTENT": "refusal",
    "SPII": "refusal",
}

# Parts of a reply that call a tool. Old versions of the SDK lack some.
_CALLS = ("function_call", "tool_call", "executable_code")

# The API has no code for it, only these words.
_TOO_LONG = re.compile(r"input token count.{0,40}exceeds the maximum number of tokens")
_DELAY = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)s")


class GeminiHandler(NativeHandler):
    """A Gemini model. handlers/README.md documents the arguments.

    Raises:
        ValueError: thinking has both a budget and an effort.
    """

    provider = GEMINI

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
        if thinking is not None and effort is not None:
            raise ValueError("thinking and effort: Gemini takes one of them")
        self.max_tokens = max_tokens
        self.samples = temperature != 0
        options = {
            "temperature": temperature,
            "max_output_tokens": max_tokens,
            "thinking_config": _thinking(thinking, effort),
        }
        self._options = {name: value for name, value in options.items() if value is not None}

    def identity(self) -> dict[str, Any]:
        """See ``ModelHandler.identity``."""
        return {"handler": "gemini", "base_url": self.base_url, "model": self.model} | self._options

    def _make_client(self, http: Any, key: str) -> Any:
        from google.genai import Client

        # The SDK warns of a new reason for the end of an answer; here it is "other".
        warnings.filterwarnings("ignore", r".* is not a valid ", UserWarning, r"google\.genai\._common")
        # So variables such as GOOGLE_GENAI_USE_VERTEXAI and GOOGLE_GEMINI_BASE_URL do not count.
        # Without retry options the SDK makes one attempt.
        options: Any = {
            "base_url": self._url,
            "api_version": "v1beta",
            "httpx_async_client": http,
            # In milliseconds. Without it the SDK switches the client's off.
            "timeout": max(1, round(self._timeout * 1000)),
        }
        return Client(api_key=key, vertexai=False, http_options=options).aio

    def _request(self, conversation: Conversation, sizes: Sequence[int]) -> dict[str, Any]:
        contents = [
            {"role": "model" if turn["role"] == "assistant" else "user", "parts": [{"text": turn["content"]}]}
            for turn in conversation.turns
        ]
        # No tool is offered, so the SDK need not look for functions to call.
        config: dict[str, Any] = self._options | {"automatic_function_calling": {"disable": True}}
        if conversation.system:
            config["system_instruction"] = conversation.system
        return {"model": self.model, "contents": contents, "config": config}

    async def _ask(
        self, client: Any, request: dict[str, Any], on_text: Callable[[str], None] | None
    ) -> Completion:
        answer = _Answer()
        if on_text is None:
            answer.add(await client.models.generate_content(**request))
            return answer.completion()
        async with aclosing(await client.models.generate_content_stream(**request)) as chunks:
            async for chunk in chunks:
                if text := answer.add(chunk):
                    on_text(text)
        if not answer.ended:
            raise BrokenStream(f"{self._who()}: the stream ended before the answer did")
        return answer.completion()

    def _translate(self, error: Exception, key: str) -> HandlerError | None:
        return translate(error, self._who(), key)


def translate(error: Exception, who: str, key: str = "") -> HandlerError | None:
    """Return the SDK's exception as one of ours, without the key; None if it is another's."""
    from google.genai import errors

    if not isinstance(error, errors.APIError):
        return None
    # The SDK's own types are wider than what it checks.
    raised = cast("Any", error)
    response: Any = raised.response
    if (ours := getattr(response, "extensions", {}).get(ERROR_EXTENSION)) is not None:
        return cast("HandlerError", ours)
    body: object = raised.details
    code: object = raised.code
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    words = (
        error.message
        if isinstance(error.message, str) and error.message
        else str(error.status or "no reason")
    )
    said = f"{who} answered {status}: {without_key(key, words)}"
    notes = field_of(body, "error", "details")
    details = list(cast("list[object]", notes)) if isinstance(notes, list) else []
    if status == 413 or (status == 400 and _TOO_LONG.search(words)):
        return ContextTooLong(said)
    if status in (401, 402, 403, 404) or any(
        field_of(each, "reason") == "API_KEY_INVALID" for each in details
    ):
        hint = (
            ""
            if status in (402, 404)
            else " (the key is GEMINI_API_KEY's or GOOGLE_API_KEY's, or api_key_env's)"
        )
        return NoAccess(said + hint)
    if status in (408, 409, 429) or status >= 500:
        wait = _asked_delay(details)
        if wait is None:
            wait = retry_after(getattr(response, "headers", {}))
        return TryAgain(said, retry_after=wait, reason=REASONS.get(status))
    return Rejected(said)


def _asked_delay(details: Sequence[object]) -> float | None:
    # google.rpc.RetryInfo: {"retryDelay": "13s"}
    for each in details:
        delay = field_of(each, "retryDelay")
        if isinstance(delay, str) and (found := _DELAY.fullmatch(delay)):
            return float(found[1])
    return None


class _Answer:
    """Collects a reply, whole or from its chunks."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._finish: FinishReason | None = None
        self._usage = Usage(calls=1)
        self._tool = False

    @property
    def ended(self) -> bool:
        """Return whether the end of the answer has come."""
        return self._finish is not None

    def add(self, reply: Any) -> str:
        """Add a reply or a chunk of one, and return its text."""
        if reply.usage_metadata is not None:
            self._usage = _usage(reply.usage_metadata)
        # The prompt was refused: there is no candidate.
        if reply.prompt_feedback is not None and reply.prompt_feedback.block_reason is not None:
            self._finish = "refusal"
        said: list[str] = []
        candidates: list[Any] = list(reply.candidates or ())[:1]
        for candidate in candidates:
            parts: list[Any] = (candidate.content and candidate.content.parts) or []
            for part in parts:
                self._tool |= any(getattr(part, name, None) is not None for name in _CALLS)
                (self._thoughts if part.thought else said).append(text_of(part.text))
            if candidate.finish_reason is not None:
                reason = str(candidate.finish_reason.value)
                self._tool |= "FUNCTION_CALL" in reason or "TOOL_CALL" in reason
                # A prompt that was blocked stays a refusal.
                if self._finish != "refusal":
                    self._finish = _FINISH.get(reason, "other")
        self._text += said
        return "".join(said)

    def completion(self) -> Completion:
        """Return the completion.

        Raises:
            Unavailable: there is none in the reply.
            OnlyToolCall: it has no text.
        """
        text = "".join(self._text)
        if not text and not self._tool and self._finish is None:
            raise ValueError("the reply has no candidate")
        completion = Completion(text, self._usage, self._finish or "other", "".join(self._thoughts))
        return with_tool_call(completion) if self._tool else completion


def _usage(counts: Any) -> Usage:
    # Thoughts are billed as output, and counted beside it. Cached tokens are a part of the prompt's.
    thoughts = whole_count(counts.thoughts_token_count)
    prompt = whole_count(counts.prompt_token_count)
    return Usage(
        prompt,
        whole_count(counts.candidates_token_count) + thoughts,
        1,
        cache_read_tokens=min(prompt, whole_count(counts.cached_content_token_count)),
        cache_write_tokens=0,
        reasoning_tokens=thoughts,
    )


def _thinking(thinking: int | str | None, effort: str | None) -> dict[str, Any] | None:
    if thinking is None and effort is None:
        return None
    if effort is not None:
        return {"thinkingLevel": effort.upper(), "includeThoughts": True}
    budget = {"adaptive": -1, "off": 0}.get(str(thinking), thinking)
    return {"thinkingBudget": budget, "includeThoughts": budget != 0}
