"""Messages between engine and zygote."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .base import Message
from .limits import ResourceLimits, SessionLimits
from .shim_link import SetupFailed


class Spawn(Message, frozen=True):
    """Fork a shim. The context's descriptor and the shim's end of its stream to the engine come with it."""

    # The shim's ZeroMQ routing id.
    session: bytes
    limits: SessionLimits
    resources: ResourceLimits


class ZygoteReady(Message, frozen=True):
    """The zygote is ready."""

    version: int


class ShimExit(Message, frozen=True):
    """A shim ended with this wait status, and its guest with it."""

    session: bytes
    status: int


class Abandon(Message, frozen=True):
    """Kill a shim, and its guest with it."""

    session: bytes


class Attach(Message, frozen=True):
    """Fork a shim for a container, whose stdio comes with it, and the shim's end of its stream."""

    session: bytes
    limits: SessionLimits
    # Folders of the container's control groups by controller; empty where this machine cannot see them.
    groups: dict[str, str]


class NotForked(Message, frozen=True):
    """The fork(2) of a session's shim failed."""

    session: bytes
    errno: int


ToZygote = Spawn | Attach | Abandon
FromZygote = ZygoteReady | ShimExit | NotForked | SetupFailed

decode_to_zygote: Callable[[bytes], ToZygote] = msgspec.msgpack.Decoder(ToZygote).decode
decode_from_zygote: Callable[[bytes], FromZygote] = msgspec.msgpack.Decoder(FromZygote).decode
