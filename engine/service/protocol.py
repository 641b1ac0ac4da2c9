"""The messages between engines and a model server. This file is the authority, and has a version.

An engine has a DEALER socket, the service a ROUTER; a message is one frame: a MessagePack array whose first
item is the message's number. A connection is a session and ends with it; nothing is sent again over the next.

    engine                      service
    Hello               →
                        ←       Welcome, or Refused
    Ask, Ask, Cancel, … →
                        ←       Answer or Failure for each Ask that was not cancelled, in any order
                        ←       Probe, now and then: it says nothing

Credit. A request costs its size, at least ``LEAST_COST``, from the moment it is sent until it is answered or
cancelled. What a connection has under way may cost ``CREDIT`` together; an engine waits, the service hangs up
on one that does not. It hangs up on everything that does not stand here.

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

# Bytes of a message.
MAX_BYTES = 32 << 20
# Bytes of requests that one connection may have under way.
CREDIT = 64 << 20
# Bytes that a small request counts as, so that at most 1024 are under way.
LEAST_COST = 64 << 10

Number = Annotated[int, Meta(ge=0, lt=2**53)]
Role = Literal["system", "user", "assistant"]
FailureCode = Literal["timeout", "unavailable", "rejected", "too_long", "failed"]


class Open(msgspec.Struct, frozen=True, array_like=True):
    """A message that every version understands: fields are only added at its end."""


class Closed(Open, frozen=True, forbid_unknown_fields=True):
    """A message of this version, without one item more or less."""


# From the engine


class Hello(Open, frozen=True, tag=1):
    """The first message of a connection."""

    version: Number


class Ask(Closed, frozen=True, tag=2):
    """A conversation for the model of a role. The engine numbers its requests."""

    request: Number
    role: str
    messages: Annotated[list[tuple[Role, str]], Meta(max_length=100_000)]


class Cancel(Closed, frozen=True, tag=3):
    """A request that needs no answer any more."""

    request: Number


# From the service


class Offer(Closed, frozen=True):
    """A model as its ``ModelHandler`` describes itself. ``concurrency`` requests at once keep it busy."""

    model: str
    window: int | None
    max_tokens: int | None
    price: tuple[float, float] | None
    samples: bool
    base_url: str | None
    identity: dict[str, Any] | None
    concurrency: Annotated[int, Meta(ge=1)]


class Welcome(Closed, frozen=True, tag=20):
    """The models by role."""

    offers: dict[str, Offer]


class Refused(Open, frozen=True, tag=21):
    """No session: the server has another ``version``, or is ``full``."""

    version: Number
    full: bool


class Answer(Closed, frozen=True, tag=22):
    """A completion. ``queued`` includes the wait in the server."""

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
    """Why there is no completion, and when to try again."""

    request: Number
    code: FailureCode
    message: str
    retry_after: float | None


class Probe(Closed, frozen=True, tag=24):
    """A message by which the server finds connections that are gone."""


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
    """Decode a message of an engine.

    Raises:
        RemoteProtocolError: it is no message.
    """
    return _decode(_FROM_ENGINE, payload)


def decode_from_service(payload: bytes | memoryview) -> FromService:
    """Decode a message of the server.

    Raises:
        RemoteProtocolError: it is no message.
    """
    return _decode(_FROM_SERVICE, payload)


def cost(payload: bytes | memoryview) -> int:
    """Return the credit that a request takes."""
    return max(LEAST_COST, len(payload))


def failure(request: int, error: Exception) -> Failure:
    """Return the message for an error."""
    # The words of an unknown error may hold secrets and stay here.
    retry_after = error.retry_after if isinstance(error, Unavailable) else None
    for code, kind in _ERRORS.items():
        if isinstance(error, kind):
            return Failure(request, code, replace_surrogates(str(error)), retry_after)
    return Failure(request, "unavailable", f"the model failed with {type(error).__name__}", None)


def error_of(failed: Failure) -> HandlerError:
    """Return the error of a message."""
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
