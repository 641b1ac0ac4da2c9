"""The interface of backends, which open guests, and the process backend."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

from ...sandbox_image import protocol
from ..errors import SandboxUnavailable
from ..jail.rlimits import unmet
from ..toolbox.toolbox import Toolbox
from .config import SandboxConfig
from .shims import Receiver
from .zygote import ZygoteClient, is_busy

_BUSY_SECONDS = 0.02


class Guest:
    """The connection to one guest and its shim."""

    def __init__(
        self,
        zygote: ZygoteClient,
        shim_id: bytes,
        load: protocol.Load,
        *,
        backend: str = "process",
        held: protocol.Enforcement | None = None,
        lowered: tuple[str, ...] = (),
    ) -> None:
        self._zygote = zygote
        self._shim_id = shim_id
        # The message that gives the guest its context.
        self.load = load
        # As in ``Isolation``.
        self.backend = backend
        self.lowered = lowered
        # What holds the limits, if the shim cannot see it.
        self.held = held
        # Bound once, because every reply to a worker call goes through it.
        self.send: Callable[[protocol.ToShim], int] = partial(zygote.send, shim_id)
        # An encoded message that is long, and so comes in pieces.
        self.send_pieces: Callable[[Sequence[bytes]], None] = partial(zygote.send_pieces, shim_id)

    @property
    def is_ours(self) -> bool:
        """See ``ZygoteClient.is_ours``."""
        return self._zygote.is_ours

    @property
    def is_stopped(self) -> bool:
        """See ``ZygoteClient.is_stopped``."""
        return self._zygote.is_stopped

    def check_usable(self) -> None:
        """See ``ZygoteClient.check_usable``."""
        self._zygote.check_usable()

    def abandon(self) -> None:
        """See ``ZygoteClient.abandon``."""
        self._zygote.abandon(self._shim_id)

    def give_up(self) -> None:
        """Deliver no more messages, and let the zygote take no more orders."""
        self._zygote.forget(self._shim_id)
        self._zygote.retire()

    async def discard(self) -> None:
        """Deliver no more messages, and remove what the guest left."""
        self._zygote.forget(self._shim_id)


async def when_not_busy(order: Callable[[], bytes]) -> bytes:
    """Order a shim. While too many other orders wait in the zygote's socket, wait for room."""
    while True:
        try:
            return order()
        except OSError as error:
            if not is_busy(error):
                raise
        await asyncio.sleep(_BUSY_SECONDS)


class Backend(ABC):
    """Opens guests for one event loop."""

    @property
    def alive(self) -> bool:
        """Whether it can open guests."""
        return True

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

    @property
    def alive(self) -> bool:
        """See ``Backend.alive``."""
        return self._zygote.alive

    async def open(
        self, receiver: Receiver, config: SandboxConfig, context: object, toolbox: Toolbox
    ) -> Guest:
        """See ``Backend.open``."""
        zygote, contexts = self._zygote, self._zygote.contexts
        lowered = tuple(unmet(config.resource_limits()))
        if lowered and config.isolation == "strict":
            raise SandboxUnavailable(
                f"The limits of this process are below those of the sandbox ({'; '.join(lowered)})",
                "Raise them where the engine starts (`ulimit -H`, LimitNOFILE= of a service), or ask for "
                "less. `isolation: best_effort` accepts what is allowed.",
            )
        fd, kind = await contexts.written(context)
        try:
            limits, resources = config.session_limits(len(toolbox.host)), config.resource_limits()
            shim_id = await when_not_busy(lambda: zygote.spawn(receiver, limits, resources, fd))
        finally:
            os.close(fd)
        return Guest(zygote, shim_id, protocol.Load(kind, "descriptor", b""), lowered=lowered)
