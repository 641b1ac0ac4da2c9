"""A model of a broker service, as a handler in the engine's process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ...handlers import Completion, Message, ModelHandler, Price, Rejected
from ...handlers.base import PerLoop
from .address import check_address
from .connection import Line, Peer
from .protocol import Offer


class RemoteHandler(ModelHandler):
    """The model that a broker service has for a role.

    ``model``, ``window``, ``price`` and the rest are the service's, from the time it was first entered or asked.
    A connection that is lost fails what is under way with ``Unavailable``, and nothing of it is sent again; the next
    call connects anew.
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
        """Nothing is read or opened yet.

        Args:
            role: the model's name at the service: ``worker`` or ``supervisor``.
            address: the service's, ``ipc://PATH`` or ``tcp://HOST:PORT``.
            curve_keys: the folder with the client's keys; tcp needs them.
            timeout: seconds for an answer, with the time that it waits for its turn.
            connect_timeout: seconds for a connection.

        Raises:
            TaskError: the address is none, or tcp without keys.
        """
        check_address(address, keys=curve_keys is not None)
        self.role = role
        self.model = role
        self._timeout = timeout
        self._peer = Peer(address, Path(curve_keys) if curve_keys is not None else None, connect_timeout)
        self._identity: dict[str, Any] | None = None
        self._lines = PerLoop[Line]()

    def __repr__(self) -> str:
        return f"RemoteHandler({self.role!r}, {self._peer.address!r})"

    async def chat(self, messages: Sequence[Message]) -> Completion:
        """One request. Cancelling it cancels it at the service, too. See ``ModelHandler.chat``.

        Raises:
            CallTimeout: an ``Unavailable``: there was no answer in time.
            TaskError: the keys cannot be read.
        """
        async with self:
            link = await self._lines.get().link()
            return await link.ask(self.role, messages, self._timeout)

    def identity(self) -> dict[str, Any] | None:
        """What the service's own handler says."""
        return self._identity

    def learn(self, offers: Mapping[str, Offer]) -> None:
        """Become what the service has for the role.

        Raises:
            Rejected: it has nothing.
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
            Unavailable: nobody answers at the address.
            Rejected: the service does not know the key, speaks another version, or has no such model.
        """
        self._lines.enter(lambda: Line(self._peer))
        try:
            self.learn((await self._lines.get().link()).offers)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        line = self._lines.leave()
        if line is not None:
            await line.close()


async def handlers_at(
    address: str, *, curve_keys: str | os.PathLike[str] | None = None
) -> dict[str, RemoteHandler]:
    """A handler for each model that the service at an address has, by role.

    Raises:
        TaskError: the address is none, or the keys cannot be read.
        HandlerError: see ``RemoteHandler.__aenter__``.
    """
    check_address(address, keys=curve_keys is not None)
    line = Line(Peer(address, Path(curve_keys) if curve_keys is not None else None))
    try:
        offers = (await line.link()).offers
    finally:
        await line.close()
    handlers = {role: RemoteHandler(role, address, curve_keys=curve_keys) for role in offers}
    for handler in handlers.values():
        handler.learn(offers)
    return handlers
