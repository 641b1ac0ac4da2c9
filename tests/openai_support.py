"""What the tests of the OpenAI handler share: one of a server that listens, and what a chat gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from supdist.handlers import (
    BatchItem,
    Completion,
    HandlerError,
    Message,
    OpenAIHandler,
)
from supdist.tools.testing.fake_openai import (
    FakeOpenAI,
    Reply,
    Shape,
)

ASKED: list[Message] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is it"}]
SOON = {"retry-after-ms": "1"}


def handler_of(server: FakeOpenAI, **options: Any) -> OpenAIHandler:
    standard: dict[str, Any] = {"base_url": server.base_url, "max_retries": 0, "timeout": 10.0}
    return OpenAIHandler("m", **(standard | options))


async def outcome(handler: OpenAIHandler, messages: Sequence[Message] = ASKED) -> BatchItem:
    """What a chat gives; any exception but ours goes through, and fails the test."""
    try:
        return await handler.chat(messages)
    except HandlerError as error:
        return error


async def outcome_of(*replies: Reply, **options: Any) -> tuple[BatchItem, int]:
    """What a chat gives where the endpoint replies so, and the number of requests that it took."""
    async with FakeOpenAI(replies) as server:
        got = await outcome(handler_of(server, **options))
    # Some microseconds always pass.
    return replace(got, queued=0.0) if isinstance(got, Completion) else got, len(server.requests)


def completion(**changes: Any) -> Shape:
    """A good completion, with fields of its JSON replaced."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return Shape(whole | {"usage": {"prompt_tokens": 3, "completion_tokens": 4}} | changes)
