"""Turn the SDK's replies into our completions."""

from __future__ import annotations

from typing import Any

from .base import Completion, FinishReason, Usage, with_tool_call
from .errors import Unavailable
from .openai_errors import Asked, reply_error, retry_after, system_words, translate, without_key
from .openai_parts import field, finish_reason, is_object, items, read_message, token_count

# Other handlers and tests take these from here.
__all__ = [
    "BrokenStream",
    "CompletionBuilder",
    "parse_reply",
    "retry_after",
    "system_words",
    "translate",
    "without_key",
]

_NO_FIELDS = "the endpoint sent a reply without the fields of a completion"


class BrokenStream(Unavailable):
    """A stream ended before the answer did."""


class CompletionBuilder:
    """Collects the parts of a completion. What is wrong beside the text is ignored: the text was paid for."""

    def __init__(self, asked: Asked | None = None) -> None:
        self._asked = asked or Asked()
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._refusal: list[str] = []
        self._has_tool = False
        self._finish: FinishReason | None = None
        self._used = {"prompt": 0, "completion": 0}
        self._cached: int | None = None
        self._thought_tokens = 0

    def add_whole(self, reply: Any) -> None:
        """Add a whole reply.

        Raises:
            HandlerError: it holds none; of the kind that its error means.
        """
        choice = next(iter(items(field(reply, "choices"))), None)
        message = field(choice, "message")
        if not is_object(message):
            raise reply_error(reply, self._asked)
        if not self._add(message):
            raise Unavailable(_NO_FIELDS)
        if (error := field(choice, "error") or field(reply, "error")) and not "".join(self._text):
            raise reply_error({"error": error}, self._asked)
        self._finish = self._end(choice)
        self._count(field(reply, "usage"))

    def add_chunk(self, chunk: Any) -> str:
        """Add an event of a stream and return its text.

        Raises:
            HandlerError: it is an error, or has another shape.
        """
        choices, usage = field(chunk, "choices"), field(chunk, "usage")
        self._count(usage)
        if not choices:
            # The event with the usage has no choice.
            is_known = field(chunk, "id") or field(chunk, "object") or field(chunk, "model")
            if field(chunk, "error") or (
                (field(chunk, "message") or field(chunk, "detail")) and usage is None
            ):
                raise reply_error(chunk, self._asked)
            if usage is None and not is_known and not isinstance(choices, list):
                raise Unavailable(_NO_FIELDS)
            return ""
        choice = next(iter(items(choices)), None)
        delta = field(choice, "delta")
        ended = self._end(choice)
        self._count(field(choice, "usage"))
        before = len(self._text)
        if not is_object(delta):
            # Some endpoints end with a choice that has no delta.
            if ended is None or delta is not None:
                raise Unavailable(_NO_FIELDS)
        elif not self._add(delta):
            raise Unavailable(_NO_FIELDS)
        self._finish = ended or self._finish
        return "".join(self._text[before:]) or "".join(self._refusal[before:])

    def _add(self, message: Any) -> bool:
        """Add a message or a piece of one; return whether its content can be read."""
        content = read_message(message)
        self._text.append(content.text)
        self._thoughts.append(content.thoughts)
        self._refusal.append(content.refusal)
        self._has_tool |= content.has_tool
        return content.is_known

    def _end(self, choice: Any) -> FinishReason | None:
        reason = field(choice, "finish_reason")
        # Some endpoints name the call only here, when they cannot parse it.
        self._has_tool |= reason in ("tool_calls", "function_call")
        return finish_reason(reason)

    def _count(self, usage: Any) -> None:
        for name, other in (("prompt", "input"), ("completion", "output")):
            for field_name in (f"{name}_tokens", f"{other}_tokens"):
                if (count := token_count(field(usage, field_name))) is not None:
                    self._used[name] = count
                    break
        # OpenAI's, and those that copy its fields.
        cached = token_count(field(field(usage, "prompt_tokens_details"), "cached_tokens"))
        self._cached = self._cached if cached is None else cached
        thoughts = token_count(field(field(usage, "completion_tokens_details"), "reasoning_tokens"))
        self._thought_tokens = thoughts or self._thought_tokens

    def completion(self, *, streamed: bool) -> Completion:
        """Return the completion.

        Raises:
            BrokenStream: its end is missing.
            OnlyToolCall: it has no text.
        """
        text, refusal = "".join(self._text), "".join(self._refusal)
        if streamed and self._finish is None:
            raise BrokenStream("the endpoint's stream ended before the answer did")
        finish: FinishReason = self._finish or "other"
        if refusal and not text:
            text, finish = refusal, "refusal"
        prompt, written = self._used["prompt"], self._used["completion"]
        cached = None if self._cached is None else min(prompt, self._cached)
        usage = Usage(
            prompt, written, 1, cache_read_tokens=cached, reasoning_tokens=min(written, self._thought_tokens)
        )
        completion = Completion(text, usage, finish, "".join(self._thoughts))
        return with_tool_call(completion) if self._has_tool else completion


def parse_reply(reply: Any, asked: Asked | None = None) -> Completion:
    """Return the completion of a whole reply.

    Raises:
        HandlerError: it holds none.
    """
    answer = CompletionBuilder(asked)
    answer.add_whole(reply)
    return answer.completion(streamed=False)
