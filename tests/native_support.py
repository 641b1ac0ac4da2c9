"""The handlers of providers behind one interface, each with its server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from supdist.handlers import (
    AnthropicHandler,
    BatchItem,
    GeminiHandler,
    HandlerError,
    Message,
    ModelHandler,
    OpenAIHandler,
)
from supdist.tools.testing import fake_anthropic, fake_gemini
from supdist.tools.testing.fake_anthropic import FakeAnthropic
from supdist.tools.testing.fake_gemini import FakeGemini
from supdist.tools.testing.fake_openai import FakeOpenAI, Refusal, Reply, Shape, Stream

KEY = "sk-a-secret-key-of-the-tests"
ASKED: list[Message] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is it"}]


@dataclass(frozen=True)
class Backend:
    """A handler's class and the server that speaks its protocol."""

    handler: Callable[..., ModelHandler]
    server: Callable[..., FakeOpenAI]
    thought: Callable[[str], dict[str, Any]]
    length: str
    # A part that calls a tool, and the reason that ends it.
    tool: dict[str, Any]
    called: str

    def handler_of(self, server: FakeOpenAI, **options: Any) -> ModelHandler:
        standard: dict[str, Any] = {
            "base_url": server.base_url,
            "api_key": KEY,
            "max_retries": 0,
            "timeout": 10.0,
        }
        return self.handler("m", **(standard | options))


BACKENDS = {
    "openai": Backend(
        OpenAIHandler,
        FakeOpenAI,
        lambda text: {"reasoning_content": text},
        "length",
        {
            "tool_calls": [
                {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ]
        },
        "tool_calls",
    ),
    "anthropic": Backend(
        AnthropicHandler,
        FakeAnthropic,
        fake_anthropic.thinking,
        "max_tokens",
        {"type": "tool_use", "id": "1", "name": "f", "input": {}},
        "tool_use",
    ),
    "gemini": Backend(
        GeminiHandler, FakeGemini, fake_gemini.thinking, "MAX_TOKENS", {"functionCall": {"name": "f"}}, "STOP"
    ),
}
NATIVE = {name: backend for name, backend in BACKENDS.items() if name != "openai"}


def as_whole(reply: Stream | Refusal, backend: Backend) -> Reply:
    """Return a reply as one that is not streamed."""
    if isinstance(reply, Refusal):
        return reply
    parts = [part for part in reply.parts if isinstance(part, str | dict)]
    if backend.handler is OpenAIHandler:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for part in parts:
            message |= {"content": part} if isinstance(part, str) else part
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        return Shape({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]})
    if backend.handler is AnthropicHandler:
        content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
        usage = {"input_tokens": 1, "output_tokens": 1}
        common = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
        return Shape(common | {"content": content, "stop_reason": reply.finish_reason, "usage": usage})
    shown = [{"text": part} if isinstance(part, str) else part for part in parts]
    candidate = {
        "content": {"role": "model", "parts": shown},
        "finishReason": reply.finish_reason,
        "index": 0,
    }
    return Shape({"candidates": [candidate], "modelVersion": "fake"})


async def outcome(
    handler: ModelHandler,
    messages: Sequence[Message] = ASKED,
    on_text: Callable[[str], None] | None = None,
) -> BatchItem:
    """What a chat gives; any exception but ours goes through, and fails the test."""
    try:
        if on_text is not None:
            return await handler.chat_stream(messages, on_text)
        result: Any = handler.chat(messages)
        return await result
    except HandlerError as error:
        return error
