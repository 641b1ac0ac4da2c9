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
from supdist.tools.testing.fake_openai import FakeOpenAI

KEY = "sk-a-secret-key-of-the-tests"
ASKED: list[Message] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is it"}]


@dataclass(frozen=True)
class Backend:
    """A handler's class and the server that speaks its protocol."""

    handler: Callable[..., ModelHandler]
    server: Callable[..., FakeOpenAI]
    thought: Callable[[str], dict[str, Any]]
    length: str

    def handler_of(self, server: FakeOpenAI, **options: Any) -> ModelHandler:
        standard: dict[str, Any] = {
            "base_url": server.base_url,
            "api_key": KEY,
            "max_retries": 0,
            "timeout": 10.0,
        }
        return self.handler("m", **(standard | options))


BACKENDS = {
    "openai": Backend(OpenAIHandler, FakeOpenAI, lambda text: {"reasoning_content": text}, "length"),
    "anthropic": Backend(AnthropicHandler, FakeAnthropic, fake_anthropic.thinking, "max_tokens"),
    "gemini": Backend(GeminiHandler, FakeGemini, fake_gemini.thinking, "MAX_TOKENS"),
}
NATIVE = {name: backend for name, backend in BACKENDS.items() if name != "openai"}


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
