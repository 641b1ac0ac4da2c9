"""The messages between engines and a model server. This file is the specification.

A message is one frame: a MessagePack array that starts with the message's number. Engines have DEALER
sockets, the server a ROUTER. A session ends with its connection.

    engine                      server
    Hello               →
                        ←       Welcome or Refused
    ChatRequest, Cancel →
                        ←       ChatReply or Failure in any order; none after Cancel
                        ←       Probe, to be ignored

A request costs its size, at least ``LEAST_COST``, until it is answered or cancelled. Requests under way cost
at most ``CREDIT`` together. The server disconnects an engine that exceeds this or sends anything else.

Text is UTF-8 without lone surrogates.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from ...handlers import ContextTooLong, HandlerError, NoAccess, Rejected, Unavailable, Unreachable
from ...handlers.errors import UnavailableReason
from ...sandbox_image.text import replace_surrogates
from ..broker.handler_queue import CallTimeout
from ..errors import RemoteProtocolError

T = TypeVar("T")

VERSION = 3

# Bytes of a message.
MAX_BYTES = 32 << 20
# Bytes of requests that one connection may have under way.
CREDIT = 64 << 20
# Bytes that a small request counts as, so that at most 1024 are under way.
LEAST_COST = 64 << 10

Number = Annotated[int, Meta(ge=0, lt=2**53)]
Role = Literal["system", "user", "assistant"]
FailureCode = Literal["timeout", "unreachable", "unavailable", "no_access", "rejected", "too_long", "failed"]


class ExtensibleMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message for all versions; new fields come last."""


class StrictMessage(ExtensibleMessage, frozen=True, forbid_unknown_fields=True):
    """A message with exactly these fields."""


# From the engine


class Hello(ExtensibleMessage, frozen=True, tag=1):
    """The first message of a connection."""

    version: Number


class ChatRequest(StrictMessage, frozen=True, tag=2):
    """A conversation for a role's model, numbered by the engine."""

    request: Number
    role: str
    messages: Annotated[list[tuple[Role, str]], Meta(max_length=100_000)]


class Cancel(StrictMessage, frozen=True, tag=3):
    """Ends a request without an answer."""

    request: Number


# From the service


class Rates(StrictMessage, frozen=True):
    """The fields of a ``Price``."""

    input_usd: float
    output_usd: float
    cache_read_usd: float | None
    cache_write_usd: float | None


class Offer(StrictMessage, frozen=True):
    """The fields of a ``ModelHandler``; ``concurrency`` requests keep it busy."""

    model: str
    window: int | None
    max_tokens: int | None
    price: Rates | None
    samples: bool
    base_url: str | None
    identity: dict[str, Any] | None
    concurrency: Annotated[int, Meta(ge=1)]


class Welcome(StrictMessage, frozen=True, tag=20):
    """The models by role."""

    offers: dict[str, Offer]


class Refused(ExtensibleMessage, frozen=True, tag=21):
    """No session: another ``version``, or the server is ``full``."""

    version: Number
    full: bool


class Used(StrictMessage, frozen=True):
    """The fields of a ``Usage``."""

    input_tokens: Number
    output_tokens: Number
    calls: Number
    cache_read_tokens: Number | None
    cache_write_tokens: Number | None
    reasoning_tokens: Number


class ChatReply(StrictMessage, frozen=True, tag=22):
    """A completion. ``queued`` includes the wait in the server."""

    request: Number
    text: str
    usage: Used
    finish_reason: Literal["stop", "length", "refusal", "tool_call", "other"]
    reasoning: str
    retries: Number
    queued: float


class Failure(StrictMessage, frozen=True, tag=23):
    """An error; of one that may pass, the seconds to wait before a retry and the reason."""

    request: Number
    code: FailureCode
    message: str
    retry_after: float | None
    reason: UnavailableReason | None


class Probe(StrictMessage, frozen=True, tag=24):
    """A check for lost connections."""


FromEngine = Hello | ChatRequest | Cancel
FromService = Welcome | Refused | ChatReply | Failure | Probe

encode = msgspec.msgpack.Encoder().encode
_FROM_ENGINE = msgspec.msgpack.Decoder(FromEngine)
_FROM_SERVICE = msgspec.msgpack.Decoder(FromService)

# Subclasses first: the first class that matches is sent.
_ERRORS: dict[FailureCode, type[HandlerError]] = {
    "timeout": CallTimeout,
    "unreachable": Unreachable,
    "unavailable": Unavailable,
    "no_access": NoAccess,
    "rejected": Rejected,
    "too_long": ContextTooLong,
    "failed": HandlerError,
}


def decode_from_engine(payload: bytes | memoryview) -> FromEngine:
    """Decode an engine's message.

    Raises:
        RemoteProtocolError: it is invalid.
    """
    return _decode(_FROM_ENGINE, payload)


def decode_from_service(payload: bytes | memoryview) -> FromService:
    """Decode a server's message.

    Raises:
        RemoteProtocolError: it is invalid.
    """
    return _decode(_FROM_SERVICE, payload)


def cost(payload: bytes | memoryview) -> int:
    """Return the credit that a request takes."""
    return max(LEAST_COST, len(payload))


def failure(request: int, error: Exception) -> Failure:
    """Return the message for an error."""
    # The text of an unknown error may hold secrets, and stays on the server.
    passing = error if isinstance(error, Unavailable) else Unavailable("")
    for code, kind in _ERRORS.items():
        if isinstance(error, kind):
            return Failure(request, code, replace_surrogates(str(error)), passing.retry_after, passing.reason)
    return Failure(request, "unavailable", f"the model failed with {type(error).__name__}", None, None)


def error_of(failed: Failure) -> HandlerError:
    """Return the error of a message."""
    kind = _ERRORS[failed.code]
    if issubclass(kind, Unavailable):
        return kind(failed.message, retry_after=failed.retry_after, reason=failed.reason)
    return kind(failed.message)


def _decode(decoder: msgspec.msgpack.Decoder[T], payload: bytes | memoryview) -> T:
    if len(payload) > MAX_BYTES:
        raise RemoteProtocolError(f"a message of {len(payload)} bytes; {MAX_BYTES} are allowed")
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RemoteProtocolError("the bytes are no message of the protocol") from None
