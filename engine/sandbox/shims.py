"""The shims of one zygote, as the engine sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TypeAlias

from ...sandbox_image import protocol
from ..slices import SLICE, in_slices
from .long_messages import decode_long

Receiver: TypeAlias = Callable[[protocol.FromShim | protocol.ShimExit], None]

_LAST_MESSAGES_SECONDS = 2.0
_LAST_MESSAGES_OF_KILLED_SECONDS = 0.1
_EXIT_SECONDS = 2.0


@dataclass(slots=True)
class _Shim:
    receiver: Receiver
    # Then all its messages are delivered.
    is_disconnected: bool = False
    end: protocol.ShimExit | None = None


class Shims:
    """Passes the messages of each shim, and then its end, to its receiver.

    Args:
        on_unknown: takes the id of a shim that has no receiver, for each message.
    """

    def __init__(self, on_unknown: Callable[[bytes], None]) -> None:
        self._on_unknown = on_unknown
        self._shims: dict[bytes, _Shim] = {}

    def __len__(self) -> int:
        return len(self._shims)

    def add(self, shim_id: bytes, receiver: Receiver) -> None:
        """Deliver a shim's messages to a receiver."""
        self._shims[shim_id] = _Shim(receiver)

    def forget(self, shim_id: bytes) -> None:
        """Drop further messages of a shim."""
        self._shims.pop(shim_id, None)

    def deliver(self, shim_id: bytes, payload: bytes) -> Coroutine[object, object, None] | None:
        """Deliver a message, or return the work that delivers a long one."""
        shim = self._shims.get(shim_id)
        if shim is None:
            self._on_unknown(shim_id)
            return None
        if len(payload) > SLICE:
            return self._deliver_long(shim_id, payload)
        shim.receiver(protocol.decode_from_shim(payload))
        return None

    async def _deliver_long(self, shim_id: bytes, payload: bytes) -> None:
        for message in await in_slices(decode_long(payload)):
            # It may have been forgotten meanwhile.
            shim = self._shims.get(shim_id)
            if shim is not None:
                shim.receiver(message)

    def disconnected(self, shim_id: bytes) -> None:
        """Handle the end of a shim's stream, after its last message."""
        shim = self._shims.get(shim_id)
        if shim is None:
            return
        shim.is_disconnected = True
        if shim.end is not None:
            self._report_exit(shim.end)
        else:
            # The zygote reports the end, unless it is stopped.
            killed = protocol.ShimExit(shim_id, 9)
            asyncio.get_running_loop().call_later(_EXIT_SECONDS, self._report_exit, killed)

    def exited(self, end: protocol.ShimExit) -> None:
        """Handle the end of a shim's process."""
        shim = self._shims.get(end.session)
        if shim is None:
            return
        shim.end = end
        if shim.is_disconnected:
            self._report_exit(end)
            return
        # The receiver needs its last messages first, which say more than its wait status. A shim that was
        # killed may never have connected.
        seconds = _LAST_MESSAGES_SECONDS if end.status == 0 else _LAST_MESSAGES_OF_KILLED_SECONDS
        asyncio.get_running_loop().call_later(seconds, self._report_exit, end)

    def not_forked(self, shim_id: bytes, code: int) -> None:
        """Report that a shim could not be forked."""
        shim = self._shims.pop(shim_id, None)
        if shim is not None:
            shim.receiver(protocol.SetupFailed("fork", code))
            shim.receiver(protocol.ShimExit(shim_id, 0))

    def all_killed(self) -> None:
        """Report the end of every shim."""
        shims, self._shims = self._shims, {}
        for shim_id, shim in shims.items():
            shim.receiver(protocol.ShimExit(shim_id, 9))

    def _report_exit(self, end: protocol.ShimExit) -> None:
        shim = self._shims.pop(end.session, None)
        if shim is not None:
            shim.receiver(end)
