"""The interface of a model: messages in, a completion out."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import TracebackType
from typing import Any, Generic, Literal, TypedDict, TypeVar, cast
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from .errors import HandlerError, Rejected
from .thought_tags import may_have_thoughts
from .thoughts import MessageStream, find_thoughts

T = TypeVar("T")

_THREADS = 64

Role = Literal["system", "user", "assistant"]
# ``tool_call``: the model called a tool and wrote no text. Nothing here offers it tools.
FinishReason = Literal["stop", "length", "refusal", "tool_call", "other"]


class Message(TypedDict):
    """A chat message in the form of the OpenAI API."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Paid tokens and requests.

    Attributes:
        cache_read_tokens: input tokens that the provider read from its cache; None if it does not say.
        cache_write_tokens: input tokens that it wrote to its cache; None if it does not say.
        reasoning_tokens: output tokens of thoughts, if the provider counts them.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int = 0

    def __post_init__(self) -> None:
        if min(self.input_tokens, self.output_tokens, self.calls, self.reasoning_tokens) < 0:
            raise ValueError(f"no number of a Usage can be negative: {self}")
        if (self.cache_read_tokens or 0) < 0 or (self.cache_write_tokens or 0) < 0:
            raise ValueError(f"no number of a Usage can be negative: {self}")

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.calls + other.calls,
            _sum(self.cache_read_tokens, other.cache_read_tokens),
            _sum(self.cache_write_tokens, other.cache_write_tokens),
            self.reasoning_tokens + other.reasoning_tokens,
        )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None and other is None else (one or 0) + (other or 0)


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens.

    Attributes:
        cache_read_usd: for input that the provider read from its cache; None is ``input_usd``.
        cache_write_usd: for input that it wrote to its cache; None is ``input_usd``.
    """

    input_usd: float
    output_usd: float
    cache_read_usd: float | None = None
    cache_write_usd: float | None = None

    def of(self, usage: Usage) -> float:
        """Return the dollars for a usage; where it may be cached, the most it can cost."""
        plain = self.input_usd
        read = plain if self.cache_read_usd is None else self.cache_read_usd
        written = plain if self.cache_write_usd is None else self.cache_write_usd
        output = usage.output_tokens * self.output_usd
        if usage.cache_read_tokens is None and usage.cache_write_tokens is None:
            return (usage.input_tokens * max(plain, read, written) + output) / 1e6
        reads, writes = usage.cache_read_tokens or 0, usage.cache_write_tokens or 0
        rest = max(0, usage.input_tokens - reads - writes)
        # A provider that counts reads alone may still bill for writing.
        other = max(plain, written) if usage.cache_write_tokens is None else plain
        return (rest * other + reads * read + writes * written + output) / 1e6


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's answer and its cost.

    Attributes:
        reasoning: thoughts, which are no part of ``text``.
        retries: failed attempts.
        queued: seconds of waiting inside the handler.
    """

    text: str
    usage: Usage = Usage(calls=1)
    finish_reason: FinishReason = "stop"
    reasoning: str = ""
    retries: int = 0
    queued: float = 0.0


class OnlyToolCall(Rejected):
    """The model called a tool and wrote no text.

    The engine takes ``completion`` as the reply: it was paid for, and a supervisor may do better when told.
    """

    def __init__(self, completion: Completion) -> None:
        super().__init__(
            "the model answered with a tool call and no text; nothing here offers it tools: take `tools` out"
            " of extra_body, or switch automatic tools off at the endpoint"
        )
        self.completion = completion


def with_tool_call(completion: Completion) -> Completion:
    """Return the reply of a model that called a tool, with that as the reason why it ended.

    Raises:
        OnlyToolCall: it has no text.
    """
    if completion.finish_reason == "refusal":
        return completion
    if not completion.text.strip():
        raise OnlyToolCall(replace(completion, finish_reason="tool_call"))
    # A text that was cut off ended for that reason.
    is_whole = completion.finish_reason in ("stop", "other")
    return replace(completion, finish_reason="tool_call") if is_whole else completion


BatchItem = Completion | HandlerError


class ModelHandler(ABC):
    """A model. Define ``chat``, and ``chat_batch`` if batches are faster.

    One handler serves many runs at once.
    """

    # Logs and tables show this name.
    model: str = "unnamed"

    # Tokens of a prompt and its answer together; None if unknown.
    window: int | None = None

    # Tokens of an answer; None if only the window bounds it.
    max_tokens: int | None = None

    # None if unknown, which is not the same as free.
    price: Price | None = None

    # Conversations at once.
    max_concurrency: int = 64

    # Conversations in one ``chat_batch``.
    batch_size: int = 256

    # Seconds that a batch waits for more, while no other is under way.
    batch_wait: float = 0.0

    # Whether equal calls may get different answers, as with a temperature above 0.
    samples: bool = True

    # The endpoint. Public tables list prices and windows by it and ``model``.
    base_url: str | None = None

    @abstractmethod
    def chat(self, messages: Sequence[Message]) -> Completion | Awaitable[Completion]:
        """Answer one conversation.

        Raises:
            Unavailable: trying again later may help.
            Rejected: it does not.
            ContextTooLong: the messages do not fit.
        """

    def chat_batch(
        self, message_batches: Sequence[Sequence[Message]]
    ) -> Sequence[BatchItem] | Awaitable[Sequence[BatchItem]]:
        """Answer conversations in order; an error takes its conversation's place."""
        return self._chat_each(message_batches)

    async def chat_stream(self, messages: Sequence[Message], on_text: Callable[[str], None]) -> Completion:
        """Answer one conversation; pass its text to ``on_text`` as it comes."""
        completion = await call_chat(self, messages)
        on_text(completion.text)
        return completion

    def count_tokens(self, messages: Sequence[Message]) -> int | None:
        """Return the exact number of tokens; None without a tokenizer. Must not raise."""
        return None

    def identity(self) -> dict[str, Any] | None:
        """Return what decides an answer, as JSON; None if answers are not cached."""
        return None

    async def _chat_each(self, message_batches: Sequence[Sequence[Message]]) -> Sequence[BatchItem]:
        async def one(messages: Sequence[Message]) -> BatchItem:
            try:
                return await call_chat(self, messages)
            except HandlerError as error:
                return error

        return await all_or_none([one(messages) for messages in message_batches])

    # Runs enter one handler at once. Its last user in an event loop closes what was opened for the loop.
    async def __aenter__(self) -> ModelHandler:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


async def call_chat(handler: ModelHandler, messages: Sequence[Message]) -> Completion:
    """Call ``chat``, and take the thoughts out of its text. A plain method runs in a thread.

    Raises:
        TypeError: it returned no ``Completion``.
    """
    result: object
    try:
        if _is_async(handler.chat):
            result = await cast("Awaitable[object]", handler.chat(messages))
        else:
            result = await _in_thread(handler, handler.chat, messages)
    except OnlyToolCall as reply:
        return reply.completion
    completion = _checked(handler, "chat", result)
    # Asked here, because an await takes a microsecond, and every prompt comes through here.
    return await without_thoughts(completion) if may_have_thoughts(completion.text) else completion


async def call_chat_stream(
    handler: ModelHandler, messages: Sequence[Message], on_text: Callable[[str], None]
) -> Completion:
    """Call ``chat_stream``, and pass on its text without thoughts.

    Raises:
        TypeError: it returned no ``Completion``.
    """
    message = MessageStream(on_text)
    result: object
    try:
        result = await handler.chat_stream(messages, message.add)
    except OnlyToolCall as reply:
        return reply.completion
    message.finish()
    return await without_thoughts(_checked(handler, "chat_stream", result))


async def without_thoughts(completion: Completion) -> Completion:
    """Return a completion with the thoughts of its text in ``reasoning``."""
    split = await find_thoughts(completion.text, has_reasoning=bool(completion.reasoning))
    if split is None:
        return completion
    parts = (completion.reasoning, split.thoughts)
    return replace(completion, text=split.text, reasoning="\n\n".join(filter(None, parts)))


def _checked(handler: ModelHandler, method: str, result: object) -> Completion:
    if not isinstance(result, Completion):
        name = f"{type(handler).__name__}.{method}"
        raise TypeError(f"{name} returned a {type(result).__name__}, not a Completion")
    return result


def _is_async(method: Any) -> bool:
    return _is_async_function(getattr(method, "__func__", method))


@lru_cache(1024)
def _is_async_function(function: Any) -> bool:
    # Cached, because it takes microseconds of every call.
    return inspect.iscoroutinefunction(function)


async def call_chat_batch(
    handler: ModelHandler, message_batches: Sequence[Sequence[Message]]
) -> Sequence[BatchItem]:
    """Call ``chat_batch``, and take the thoughts out of the texts. A plain method runs in a thread."""
    answers: Sequence[BatchItem]
    if type(handler).chat_batch is ModelHandler.chat_batch:
        return await handler._chat_each(message_batches)  # pyright: ignore[reportPrivateUsage]  # one module of the package
    if _is_async(handler.chat_batch):
        answers = await cast("Awaitable[Sequence[BatchItem]]", handler.chat_batch(message_batches))
    else:
        answers = await _in_thread(handler, handler.chat_batch, message_batches)
    return [
        await without_thoughts(answer) if isinstance(answer, Completion) else answer for answer in answers
    ]


async def all_or_none(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return all results in order. If one raises, cancel the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


_limiters: RunVar[WeakKeyDictionary[ModelHandler, CapacityLimiter]] = RunVar("threads of handlers")


async def _in_thread(handler: ModelHandler, function: Callable[[Any], Any], argument: Any) -> Any:
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = WeakKeyDictionary[ModelHandler, CapacityLimiter]()
        _limiters.set(limiters)
    limiter = limiters.setdefault(handler, CapacityLimiter(_THREADS))
    result = await to_thread.run_sync(function, argument, abandon_on_cancel=True, limiter=limiter)
    return await result if inspect.isawaitable(result) else result


class PerLoop(Generic[T]):
    """One object for each event loop."""

    def __init__(self) -> None:
        self._held: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[T, int]] = WeakKeyDictionary()

    def enter(self, make: Callable[[], T]) -> None:
        """Add a user of the running loop."""
        loop = asyncio.get_running_loop()
        held, users = self._held.get(loop) or (make(), 0)
        self._held[loop] = held, users + 1

    def get(self) -> T:
        """Return the running loop's object."""
        return self._held[asyncio.get_running_loop()][0]

    def leave(self) -> T | None:
        """Remove a user; return the object after the last."""
        loop = asyncio.get_running_loop()
        held, users = self._held[loop]
        if users > 1:
            self._held[loop] = held, users - 1
            return None
        del self._held[loop]
        return held
