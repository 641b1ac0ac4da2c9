"""Messages between a shim and the isolated process that it sets up."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from .base import Message
from .limits import ResourceLimits
from .shim_link import SetupFailed

# The longest message, `ApplyLimits`, has nine bytes for each number at most.
SETUP_PACKET_BYTES = 256


class Placed(Message, frozen=True):
    """The process has its control group and ids; it can mount its root."""

    # Whether no control group counts its memory: then the process answers with ``SocketList``.
    lists_sockets: bool
    # Whether the shim stops its processes now and then, for its share of the processors.
    is_stopped: bool


class SocketList(Message, frozen=True):
    """The network namespace exists. A socket comes with it that lists all sockets, if the kernel has that."""


class ApplyLimits(Message, frozen=True):
    """Apply limits and run the guest. The context's descriptor comes with it."""

    limits: ResourceLimits


ToIsolated = Placed | ApplyLimits
# A success has no message: the process closes its end.
FromIsolated = SetupFailed | SocketList

decode_to_isolated: Callable[[bytes], ToIsolated] = msgspec.msgpack.Decoder(ToIsolated).decode
decode_from_isolated: Callable[[bytes], FromIsolated] = msgspec.msgpack.Decoder(FromIsolated).decode
