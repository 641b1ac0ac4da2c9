"""The messages between engine and zygote. Both are trusted."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .base import Message
from .limits import ResourceLimits, SessionLimits
from .shim_link import SetupFailed


class Spawn(Message, frozen=True):
    """Fork a shim for this session (its ZeroMQ routing id). The context's descriptor comes with the packet."""

    session: bytes
    limits: SessionLimits
    resources: ResourceLimits


class ZygoteReady(Message, frozen=True):
    """The zygote takes orders."""

    version: int


class ShimExit(Message, frozen=True):
    """A shim's process ended with this wait status; its guest died with it."""

    session: bytes
    status: int


class Abandon(Message, frozen=True):
    """Kill this session's shim, in any state; its guest dies with it."""

    session: bytes


class Attach(Message, frozen=True):
    """Fork a shim for a guest that a container daemon runs. The stream that the daemon attached comes with the packet.

    ``groups`` are the container's control groups, folders by controller (``engine/jail/cgroups.py``). They are empty
    where this machine cannot see them.
    """

    session: bytes
    limits: SessionLimits
    groups: dict[str, str]


class NotForked(Message, frozen=True):
    """There is no shim for this session: the ``errno`` of fork(2)."""

    session: bytes
    errno: int


ToZygote = Spawn | Attach | Abandon
FromZygote = ZygoteReady | ShimExit | NotForked | SetupFailed

decode_to_zygote: Callable[[bytes], ToZygote] = msgspec.msgpack.Decoder(ToZygote).decode
decode_from_zygote: Callable[[bytes], FromZygote] = msgspec.msgpack.Decoder(FromZygote).decode
