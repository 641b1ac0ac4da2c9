"""A model of a model server, as a handler."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from ...handlers import Completion, Message, ModelHandler, Price, Rejected
from ...handlers.base import PerLoop
from .address import check_address
from .connection import ReconnectingConnection, ServerAddress
from .protocol import Offer


class RemoteHandler(ModelHandler):
    """Sends requests to one model of a model server.

    A lost connection fails its calls with ``Unavailable``. The next call reconnects.
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
        """Check the address. The first use connects.

        Args:
            role: ``worker`` or ``supervisor``.
            address: ``ipc://PATH`` or ``tcp://HOST:PORT``.
            curve_keys: the client's key folder; tcp needs it.
            timeout: seconds for an answer.
            connect_timeout: seconds for a connection.

        Raises:
            TaskError: the address cannot be used.
        """
        check_address(address, keys=curve_keys is not None)
        self.role = role
        self.address = address
        self.model = role
        self._timeout = timeout
        self._server = ServerAddress(
            address, Path(curve_keys) if curve_keys is not None else None, connect_timeout
        )
        # ``apply_offers`` replaces these by the server's.
        self.window: int | None = None
        self.max_tokens: int | None = None
        self.price: Price | None = None
        self.samples = True
        self.base_url: str | None = None
        self.max_concurrency = ModelHandler.max_concurrency
        self._identity: dict[str, Any] | None = None
        self._connections = PerLoop[ReconnectingConnection]()

    def __repr__(self) -> str:
        return f"RemoteHandler({self.role!r}, {self._server.address!r})"

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """Send one request.

        Raises:
            CallTimeout: no answer came in time.
            TaskError: the keys cannot be read.
        """
        async with self:
            connection = await self._connections.get().connection()
            return await connection.request(self.role, messages, self._timeout)

    def identity(self) -> dict[str, Any] | None:
        """Return the identity of the server's handler."""
        return self._identity

    def apply_offers(self, offers: Mapping[str, Offer]) -> None:
        """Copy the offer for the role.

        Raises:
            Rejected: there is none.
        """
        offer = offers.get(self.role)
        if offer is None:
            others = f", only {', '.join(sorted(offers))}" if offers else ""
            raise Rejected(
                f"the broker at {self._server.address} serves no {self.role}{others}; "
                "add it to the models file"
            )
        self.model = offer.model
        self.window = offer.window
        self.max_tokens = offer.max_tokens
        self.price = Price(*msgspec.structs.astuple(offer.price)) if offer.price else None
        self.samples = offer.samples
        self.base_url = offer.base_url
        self.max_concurrency = offer.concurrency
        self._identity = offer.identity

    async def __aenter__(self) -> RemoteHandler:
        """Connect.

        Raises:
            Unavailable: no server answers.
            Rejected: the server refuses the key, the version or the role.
        """
        self._connections.enter(lambda: ReconnectingConnection(self._server))
        try:
            self.apply_offers((await self._connections.get().connection()).offers)
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
    """Return a handler for each role of a server.

    Raises:
        TaskError: the address or the keys cannot be used.
        HandlerError: the server cannot be reached, or refuses.
    """
    check_address(address, keys=curve_keys is not None)
    reconnecting = ReconnectingConnection(
        ServerAddress(address, Path(curve_keys) if curve_keys is not None else None)
    )
    try:
        offers = (await reconnecting.connection()).offers
    finally:
        await reconnecting.close()
    handlers = {role: RemoteHandler(role, address, curve_keys=curve_keys) for role in offers}
    for handler in handlers.values():
        handler.apply_offers(offers)
    return handlers
