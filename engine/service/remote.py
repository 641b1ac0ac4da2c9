"""A model of a model server, as a handler in the engine's process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ...handlers import Completion, Message, ModelHandler, Price, Rejected
from ...handlers.base import PerLoop
from .address import check_address
from .connection import Peer, Reconnecting
from .protocol import Offer


class RemoteHandler(ModelHandler):
    """The model that a model server has for a role.

    ``model``, ``window``, ``price`` and the rest are the server's, once the handler was entered. A lost
    connection fails the requests under way with ``Unavailable``; none is sent again. The next call connects
    again.
    """

    def __init__(
        self,
        role: str,
        address: str,
        *,
        curve_keys: str | os.PathLike[str] | None = None,
        timeout: float = 600.0,
        connect_timeout: float = 10.0,
    ) -> None:
        """Open nothing yet.

        Args:
            role: the model's name at the server: ``worker`` or ``supervisor``.
            address: ``ipc://PATH`` or ``tcp://HOST:PORT``.
            curve_keys: the folder with the client's keys; tcp needs them.
            timeout: seconds for an answer, with its wait in the server.
            connect_timeout: seconds for a connection.

        Raises:
            TaskError: it is no address, or tcp without keys.
        """
        check_address(address, keys=curve_keys is not None)
        self.role = role
        self.model = role
        self._timeout = timeout
        self._peer = Peer(address, Path(curve_keys) if curve_keys is not None else None, connect_timeout)
        # The server's own, once ``learn`` was called.
        self.window: int | None = None
        self.max_tokens: int | None = None
        self.price: Price | None = None
        self.samples = True
        self.base_url: str | None = None
        self.max_concurrency = ModelHandler.max_concurrency
        self._identity: dict[str, Any] | None = None
        self._connections = PerLoop[Reconnecting]()

    def __repr__(self) -> str:
        return f"RemoteHandler({self.role!r}, {self._peer.address!r})"

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Send one request. A cancellation cancels it at the server, too.

        Raises:
            CallTimeout: an ``Unavailable``: no answer came in time.
            TaskError: the keys cannot be read.
        """
        async with self:
            connection = await self._connections.get().connection()
            return await connection.ask(self.role, messages, self._timeout)

    def identity(self) -> dict[str, Any] | None:
        """Return the identity of the server's handler."""
        return self._identity

    def learn(self, offers: Mapping[str, Offer]) -> None:
        """Take over what the server offers for the role.

        Raises:
            Rejected: it offers nothing.
        """
        offer = offers.get(self.role)
        if offer is None:
            known = ", ".join(sorted(offers)) or "no model at all"
            raise Rejected(f"the broker at {self._peer.address} has no {self.role}; it has {known}")
        self.model = offer.model
        self.window = offer.window
        self.max_tokens = offer.max_tokens
        self.price = Price(*offer.price) if offer.price else None
        self.samples = offer.samples
        self.base_url = offer.base_url
        self.max_concurrency = offer.concurrency
        self._identity = offer.identity

    async def __aenter__(self) -> RemoteHandler:
        """Connect.

        Raises:
            Unavailable: no server answers at the address.
            Rejected: the server refuses the key, has another version, or has no such model.
        """
        self._connections.enter(lambda: Reconnecting(self._peer))
        try:
            self.learn((await self._connections.get().connection()).offers)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reconnecting = self._connections.leave()
        if reconnecting is not None:
            await reconnecting.close()


async def handlers_at(
    address: str, *, curve_keys: str | os.PathLike[str] | None = None
) -> dict[str, RemoteHandler]:
    """Return a handler for each model of the server at an address, by role.

    Raises:
        TaskError: it is no address, or the keys cannot be read.
        HandlerError: see ``RemoteHandler.__aenter__``.
    """
    check_address(address, keys=curve_keys is not None)
    reconnecting = Reconnecting(Peer(address, Path(curve_keys) if curve_keys is not None else None))
    try:
        offers = (await reconnecting.connection()).offers
    finally:
        await reconnecting.close()
    handlers = {role: RemoteHandler(role, address, curve_keys=curve_keys) for role in offers}
    for handler in handlers.values():
        handler.learn(offers)
    return handlers
