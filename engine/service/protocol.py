"""What engines and a broker service say to each other. This file is the authority; ``VERSION`` changes when it does.

An engine has a DEALER socket, the service a ROUTER; a message is one frame: a MessagePack array whose first item is
the message's number. A connection is a session and ends with it; nothing is sent again over the next.

    engine                      service
    Hello               →
                        ←       Welcome, or Refused
    Ask, Ask, Cancel, … →
                        ←       Answer or Failure for each Ask that was not cancelled, in any order
                        ←       Probe, now and then: it says nothing

Credit. A request costs its size, at least ``LEAST_COST``, from the moment it is sent until it is answered or
cancelled. What a connection has under way may cost ``CREDIT`` together; an engine waits, the service hangs up on one
that does not. It hangs up on everything that does not stand here.

Text is UTF-8; lone surrogates cannot be sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from ...handlers import ContextTooLong, HandlerError, Rejected, Unavailable
from ...sandbox_image.text import replace_surrogates
from ..broker.handler_queue import CallTimeout
from ..errors import RemoteProtocolError

T = TypeVar("T")

VERSION = 1

MAX_BYTES = 32 << 20
"""Of a message."""
CREDIT = 64 << 20
"""Bytes of requests that a connection may have under way."""
LEAST_COST = 64 << 10
"""Bytes that a request counts as, however small it is: at most 1024 are under way."""

Number = Annotated[int, Meta(ge=0, lt=2**53)]
Role = Literal["system", "user", "assistant"]
FailureCode = Literal["timeout", "unavailable", "rejected", "too_long", "failed"]


class Open(msgspec.Struct, frozen=True, array_like=True):
    """A message that every version understands: fields are only ever added at its end."""


class Closed(Open, frozen=True, forbid_unknown_fields=True):
    """A message or value of this version: not an item more or less."""


# From the engine


class Hello(Open, frozen=True, tag=1):
    """The first message of a connection."""

    version: Number


class Ask(Closed, frozen=True, tag=2):
    """Have the model of this role answer a conversation. The engine chooses the request's number."""

    request: Number
    role: str
    messages: Annotated[list[tuple[Role, str]], Meta(max_length=100_000)]


class Cancel(Closed, frozen=True, tag=3):
    """The answer is not wanted any more. None comes, unless it is on its way already."""

    request: Number


# From the service


class Offer(Closed, frozen=True):
    """A model, as ``ModelHandler`` describes itself. ``concurrency``: so many requests at once keep it busy."""

    model: str
    window: int | None
    max_tokens: int | None
    price: tuple[float, float] | None
    samples: bool
    base_url: str | None
    identity: dict[str, Any] | None
    concurrency: Annotated[int, Meta(ge=1)]


class Welcome(Closed, frozen=True, tag=20):
    """The models, by role."""

    offers: dict[str, Offer]


class Refused(Open, frozen=True, tag=21):
    """There will be no session: another ``version`` is spoken here, or there are too many engines already."""

    version: Number
    full: bool


class Answer(Closed, frozen=True, tag=22):
    """A completion. ``queued`` counts the seconds that it waited in the service, too."""

    request: Number
    text: str
    input_tokens: Number
    output_tokens: Number
    calls: Number
    finish_reason: Literal["stop", "length", "refusal", "other"]
    reasoning: str
    retries: Number
    queued: float


class Failure(Closed, frozen=True, tag=23):
    """Why there is no completion, and after how many seconds it is worth to try again, where that is known."""

    request: Number
    code: FailureCode
    message: str
    retry_after: float | None


class Probe(Closed, frozen=True, tag=24):
    """By sending it the service learns whether the engine is still there."""


FromEngine = Hello | Ask | Cancel
FromService = Welcome | Refused | Answer | Failure | Probe

encode = msgspec.msgpack.Encoder().encode
_FROM_ENGINE = msgspec.msgpack.Decoder(FromEngine)
_FROM_SERVICE = msgspec.msgpack.Decoder(FromService)

# From the special to the general: the first that fits is sent.
_ERRORS: dict[FailureCode, type[HandlerError]] = {
    "timeout": CallTimeout,
    "unavailable": Unavailable,
    "rejected": Rejected,
    "too_long": ContextTooLong,
    "failed": HandlerError,
}


def decode_from_engine(payload: bytes | memoryview) -> FromEngine:
    """A message of an engine.

    Raises:
        RemoteProtocolError: it is none, or too large.
    """
    return _decode(_FROM_ENGINE, payload)


def decode_from_service(payload: bytes | memoryview) -> FromService:
    """A message of the service.

    Raises:
        RemoteProtocolError: it is none, or too large.
    """
    return _decode(_FROM_SERVICE, payload)


def cost(payload: bytes | memoryview) -> int:
    """What a request costs."""
    return max(LEAST_COST, len(payload))


def failure(request: int, error: Exception) -> Failure:
    """What is told of an error. Of one that is no ``HandlerError`` nobody knows what its words hold: they stay here."""
    retry_after = error.retry_after if isinstance(error, Unavailable) else None
    for code, kind in _ERRORS.items():
        if isinstance(error, kind):
            return Failure(request, code, replace_surrogates(str(error)), retry_after)
    return Failure(request, "unavailable", f"the model failed with {type(error).__name__}", None)


def error_of(failed: Failure) -> HandlerError:
    """The error that was told."""
    kind = _ERRORS[failed.code]
    if issubclass(kind, Unavailable):
        return kind(failed.message, retry_after=failed.retry_after)
    return kind(failed.message)


def _decode(decoder: msgspec.msgpack.Decoder[T], payload: bytes | memoryview) -> T:
    if len(payload) > MAX_BYTES:
        raise RemoteProtocolError(f"a message of {len(payload)} bytes; {MAX_BYTES} are allowed")
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RemoteProtocolError("what came is no message of the protocol") from None
