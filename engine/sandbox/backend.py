"""The interface of backends, which open guests, and the process backend."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

from ...sandbox_image import protocol
from ..toolbox.toolbox import Toolbox
from .config import SandboxConfig
from .zygote import Receiver, ZygoteClient


class Guest:
    """The connection to one guest and its shim."""

    def __init__(
        self,
        zygote: ZygoteClient,
        shim_id: bytes,
        load: protocol.Load,
        *,
        backend: str = "process",
        limited: bool = True,
    ) -> None:
        self._zygote = zygote
        self._shim_id = shim_id
        # The message that gives the guest its context.
        self.load = load
        # As in ``Isolation``.
        self.backend = backend
        self.limited = limited
        # Bound once, because every reply to a worker call goes through it.
        self.send: Callable[[protocol.ToShim], None] = partial(zygote.send, shim_id)
        # An encoded message that is long, and so comes in pieces.
        self.send_pieces: Callable[[Sequence[bytes]], None] = partial(zygote.send_pieces, shim_id)

    def abandon(self) -> None:
        """See ``ZygoteClient.abandon``."""
        self._zygote.abandon(self._shim_id)

    async def discard(self) -> None:
        """Deliver no more messages, and remove what the guest left."""
        self._zygote.forget(self._shim_id)


class Backend(ABC):
    """Opens guests for one event loop."""

    @abstractmethod
    async def open(
        self, receiver: Receiver, config: SandboxConfig, context: object, toolbox: Toolbox
    ) -> Guest:
        """Start a guest; await nothing after the zygote was asked to fork its shim.

        Then the event loop delivers the first message only after the caller has the guest.

        Raises:
            SandboxUnavailable: this machine has no such isolation.
            SandboxLost: the zygote or the daemon has ended.
            TaskError: the context is no plain data, or the tools cannot be sent.
        """


class ProcessBackend(Backend):
    """Forks guests from a zygote."""

    def __init__(self, zygote: ZygoteClient) -> None:
        self._zygote = zygote

    async def open(
        self, receiver: Receiver, config: SandboxConfig, context: object, toolbox: Toolbox
    ) -> Guest:
        """See ``Backend.open``."""
        zygote, contexts = self._zygote, self._zygote.contexts
        fd = contexts.descriptor(context)
        try:
            shim_id = zygote.spawn(
                receiver, config.session_limits(len(toolbox.host)), config.resource_limits(), fd
            )
            # Written while the guest gets its limits. It reads the memory only after it was sent ``load``.
            try:
                kind = contexts.write(fd, context)
            except BaseException:
                zygote.forget(shim_id)
                zygote.abandon(shim_id)
                raise
        finally:
            os.close(fd)
        return Guest(zygote, shim_id, protocol.Load(kind, "descriptor", b""))
