"""What a model is to the engine: messages in, a completion out."""

from __future__ import annotations

import asyncio
import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, Generic, Literal, TypedDict, TypeVar, cast
from weakref import WeakKeyDictionary

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from .errors import HandlerError

T = TypeVar("T")

_THREADS = 64

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "refusal", "other"]


class Message(TypedDict):
    """One turn of a chat, in the form of the OpenAI API."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that were paid for, and the number of requests that used them."""

    input_tokens: int = 0
    output_tokens: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        if self.input_tokens < 0 or self.output_tokens < 0 or self.calls < 0:
            raise ValueError(f"no number of a Usage can be negative: {self}")

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.calls + other.calls,
        )


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens, read and written."""

    input_usd: float
    output_usd: float

    def of(self, usage: Usage) -> float:
        """What a use costs, in dollars."""
        return (usage.input_tokens * self.input_usd + usage.output_tokens * self.output_usd) / 1e6


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's answer with what it cost.

    Attributes:
        text: the answer.
        usage: tokens and requests that were paid for it.
        finish_reason: whether it is whole.
        reasoning: what the model thought aloud, where its endpoint gives that apart from the answer.
        retries: attempts before the one that gave the answer.
        queued: seconds that it waited inside of the handler, for a slot or a rate limit, before it was sent.
    """

    text: str
    usage: Usage = Usage(calls=1)
    finish_reason: FinishReason = "stop"
    reasoning: str = ""
    retries: int = 0
    queued: float = 0.0


BatchItem = Completion | HandlerError


class ModelHandler(ABC):
    """A model. Subclass it, define ``chat``, and, where the model gains by it, ``chat_batch``.

    Both may be plain methods (they are then called in a thread) or ``async`` ones. The same handler is used
    by many runs at once. Entering it (``async with``) and leaving it is counted by event loop: connections
    that it opened for a loop are closed when the last user of that loop leaves.
    """

    model: str = "unnamed"
    """The name that logs and tables show."""

    window: int | None = None
    """Tokens of a prompt and its answer together; None where nobody knows."""

    max_tokens: int | None = None
    """At most so many tokens in an answer; None where only the window bounds it."""

    price: Price | None = None
    """What its tokens cost; None where the handler does not know, which is not the same as nothing."""

    max_concurrency: int = 64
    """How many conversations may be with it at once."""

    batch_size: int = 256
    """Where it has a ``chat_batch`` of its own: at most so many conversations in one."""

    batch_wait: float = 0.0
    """Seconds that a batch which is not full waits for more, while no other is under way."""

    samples: bool = True
    """Whether two equal calls may be answered differently (a temperature above 0)."""

    base_url: str | None = None
    """The endpoint, where there is one: with ``model`` it finds a price that the handler does not know."""

    @abstractmethod
    def chat(self, messages: Sequence[Message]) -> Completion | Awaitable[Completion]:
        """Answer one conversation.

        Raises:
            Unavailable: it may be tried again later.
            Rejected: it will not be answered.
            ContextTooLong: it does not fit the model's window.
        """

    def chat_batch(
        self, message_batches: Sequence[Sequence[Message]]
    ) -> Sequence[BatchItem] | Awaitable[Sequence[BatchItem]]:
        """Answer many conversations; the results in their order.

        One that fails leaves its ``HandlerError`` in its place and does not touch the others. This one calls
        ``chat`` for each, all at once.
        """
        return self._chat_each(message_batches)

    async def chat_stream(self, messages: Sequence[Message], on_text: Callable[[str], None]) -> Completion:
        """``chat``, with the answer's text given to ``on_text`` piece by piece as it comes.

        The pieces together are the completion's ``text``, unless an attempt failed half-way and was made
        again. This one gives the whole text as one piece.
        """
        completion = await call_chat(self, messages)
        on_text(completion.text)
        return completion

    def count_tokens(self, messages: Sequence[Message]) -> int | None:
        """Tokens that the messages are to this model, exactly; None where it has no tokenizer at hand.

        It must not raise, and is called in the event loop's thread and, for long messages, in others.
        """
        return None

    def identity(self) -> dict[str, Any] | None:
        """What decides an answer besides the messages (model, endpoint, sampling), as JSON; its cached answers
        are found by it. None: its answers are not cached.
        """
        return None

    async def _chat_each(self, message_batches: Sequence[Sequence[Message]]) -> Sequence[BatchItem]:
        async def one(messages: Sequence[Message]) -> BatchItem:
            try:
                return await call_chat(self, messages)
            except HandlerError as error:
                return error

        return await all_or_none([one(messages) for messages in message_batches])

    async def __aenter__(self) -> ModelHandler:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


async def call_chat(handler: ModelHandler, messages: Sequence[Message]) -> Completion:
    """``handler.chat``, plain or ``async``: a plain one runs in a thread, so that it blocks nobody.

    Raises:
        TypeError: it gave something that is no ``Completion``.
    """
    if _is_async(handler.chat):
        result: object = await cast("Awaitable[object]", handler.chat(messages))
    else:
        result = await _in_thread(handler, handler.chat, messages)
    if not isinstance(result, Completion):
        raise TypeError(
            f"{type(handler).__name__}.chat gave a {type(result).__name__} where a Completion belongs"
        )
    return result


def _is_async(method: Any) -> bool:
    return _is_async_function(getattr(method, "__func__", method))


@lru_cache(1024)
def _is_async_function(function: Any) -> bool:
    return inspect.iscoroutinefunction(function)  # microseconds, on the way of every call


async def call_chat_batch(
    handler: ModelHandler, message_batches: Sequence[Sequence[Message]]
) -> Sequence[BatchItem]:
    """``handler.chat_batch``, plain or ``async``."""
    if _is_async(handler.chat_batch):
        return await cast("Awaitable[Sequence[BatchItem]]", handler.chat_batch(message_batches))
    if type(handler).chat_batch is ModelHandler.chat_batch:
        return await handler._chat_each(message_batches)  # pyright: ignore[reportPrivateUsage]  # one module of the package
    return await _in_thread(handler, handler.chat_batch, message_batches)


async def all_or_none(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results, in order; if one raises, the others are cancelled, and have ended, before it is raised on."""
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
    """Threads are counted by handler: one whose calls hang does not keep another from being asked."""
    try:
        limiters = _limiters.get()
    except LookupError:
        limiters = WeakKeyDictionary[ModelHandler, CapacityLimiter]()
        _limiters.set(limiters)
    limiter = limiters.setdefault(handler, CapacityLimiter(_THREADS))
    result = await to_thread.run_sync(function, argument, abandon_on_cancel=True, limiter=limiter)
    return await result if inspect.isawaitable(result) else result


class PerLoop(Generic[T]):
    """What a handler holds for each event loop that uses it: made by the loop's first user, left by its last."""

    def __init__(self) -> None:
        self._held: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[T, int]] = WeakKeyDictionary()

    def enter(self, make: Callable[[], T]) -> None:
        """Count one more user of the running loop."""
        loop = asyncio.get_running_loop()
        held, users = self._held.get(loop) or (make(), 0)
        self._held[loop] = held, users + 1

    def get(self) -> T:
        """What the running loop's users share. There must be one."""
        return self._held[asyncio.get_running_loop()][0]

    def leave(self) -> T | None:
        """Count one user less; what was held, to be closed, where it was the last."""
        loop = asyncio.get_running_loop()
        held, users = self._held[loop]
        if users > 1:
            self._held[loop] = held, users - 1
            return None
        del self._held[loop]
        return held
