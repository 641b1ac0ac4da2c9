"""What sandboxes are made by: a backend opens guests, each behind a shim of its own."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod

from ...sandbox_image import protocol
from ..toolbox.toolbox import Toolbox
from .config import SandboxConfig
from .zygote import Receiver, Zygote


class Guest:
    """One guest and its shim, until ``discard``. What the shim says goes to the receiver that it was opened with.

    Attributes:
        walls, limited: as ``Isolation.backend`` and ``Isolation.limited`` have it.
        load: how the guest gets its context.
    """

    walls = "process"
    limited = True

    def __init__(self, zygote: Zygote, session: bytes, load: protocol.Load) -> None:
        self._zygote = zygote
        self._session = session
        self.load = load

    def send(self, message: protocol.ToShim) -> None:
        """See ``Zygote.send``."""
        self._zygote.send(self._session, message)

    def abandon(self) -> None:
        """See ``Zygote.abandon``."""
        self._zygote.abandon(self._session)

    async def discard(self) -> None:
        """Hear nothing more of it, and remove what its end has left. Takes some seconds at most; raises nothing."""
        self._zygote.forget(self._session)


class Backend(ABC):
    """What walls are made of, for any number of guests of one event loop."""

    @abstractmethod
    async def open(
        self, receiver: Receiver, config: SandboxConfig, context: object, toolbox: Toolbox
    ) -> Guest:
        """A guest that starts, to be given these tools; the receiver hears how.

        Nothing is awaited after its shim was ordered, so that the caller has the guest before it hears of it.

        Raises:
            SandboxUnavailable: this machine has no such walls.
            SandboxLost: the machinery ended.
            TaskError: the context is no plain data, or the tools cannot be sent there.
        """


class ProcessBackend(Backend):
    """Walls of our own, by forks of a zygote."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote

    async def open(
        self, receiver: Receiver, config: SandboxConfig, context: object, toolbox: Toolbox
    ) -> Guest:
        """See ``Backend.open``."""
        zygote, contexts = self._zygote, self._zygote.contexts
        fd = contexts.descriptor(context)
        try:
            session = zygote.spawn(
                receiver, config.session_limits(len(toolbox.host)), config.resource_limits(), fd
            )
            # While the guest gets its limits: it looks into the memory when it is told that it may, see ``Guest.load``.
            try:
                kind = contexts.write(fd, context)
            except BaseException:
                zygote.forget(session)
                zygote.abandon(session)
                raise
        finally:
            os.close(fd)
        return Guest(zygote, session, protocol.Load(kind, "descriptor", b""))
