"""A guest session with one stream, and what a driver does with it."""

from __future__ import annotations

from supdist.engine import SandboxConfig
from supdist.sandbox_image import protocol
from supdist.sandbox_image.guest_session import Backlog, GuestSession, Measured, Send
from supdist.sandbox_image.protocol import (
    CellEnd,
    Execute,
    Interrupt,
    Outcome,
    Ready,
    Reply,
    ToolReply,
    Violation,
)

FACTS = protocol.Facts({}, 65534, 0, True, True, [], False)
CONFIG = SandboxConfig.model_validate(
    {"output": "1KiB", "display": "1KiB", "prompt": "1KiB", "batch": 4, "pending_calls": 2, "grace": 1.0}
)


class Driver:
    """A session whose guest has one stream, driven as a shim or a server drives it.

    Attributes:
        interrupts: the cells that were interrupted.
    """

    def __init__(self, limits: protocol.SessionLimits) -> None:
        self.session = GuestSession(limits, has_two_streams=False)
        self.interrupts: list[int] = []

    def execute(self, cell: int, timeout: float, now: float) -> None:
        order = Execute(cell, "code", timeout)
        assert self.session.from_engine(order, now) == [Send("repl", order)]

    def interrupt(self, now: float) -> None:
        assert self.session.cell is not None
        self._take(self.session.from_engine(Interrupt(self.session.cell.number), now))

    def reply(self, reply: Reply | ToolReply, now: float) -> bool:
        """Whether the guest gets it."""
        return self.session.from_engine(reply, now) == [Send("repl", reply)]

    def ask(self, question: protocol.PutFile | protocol.GetFile | protocol.ListFiles) -> None:
        assert self.session.from_engine(question, 100) == [Send("init", question)]

    def accept(
        self, message: protocol.FromGuest, now: float, facts: Measured | None = None
    ) -> tuple[list[protocol.FromShim], Reply | ToolReply | None]:
        """Return what the engine gets, and what the guest gets back at once. A breach is raised."""
        self.session.from_guest("init", [protocol.encode(message)])
        sends = self.session.process_frame(now)
        if self.session.unmeasured is not None:
            sends += self.session.measured(facts or Measured(), now)
        ending = self.session.ending
        if ending is not None and ending.outcome is Outcome.PROTOCOL_VIOLATION:
            raise Violation(ending.detail)
        return self._take(sends)

    def _take(self, sends: list[Send]) -> tuple[list[protocol.FromShim], Reply | ToolReply | None]:
        refusals = [send.message for send in sends if isinstance(send.message, Reply | ToolReply)]
        for send in sends:
            assert protocol.decode_to_guest(send.encoded()) if send.to != "engine" else True
            if isinstance(send.message, Interrupt):
                self.interrupts.append(send.message.cell)
        told = [protocol.decode_from_shim(send.encoded()) for send in sends if send.to == "engine"]
        return told, refusals[0] if refusals else None


def deadline(driver: Driver) -> float:
    assert driver.session.cell is not None
    return driver.session.cell.deadline()


def is_paused(driver: Driver, now: float) -> bool:
    """Whether the guest is not read."""
    return not driver.session.may_read(now, Backlog())


def session(cell: int = 1, timeout: float = 10.0, now: float = 100.0) -> Driver:
    fresh = Driver(CONFIG.session_limits(tools=2))
    fresh.accept(Ready(protocol.VERSION, FACTS), now)
    fresh.execute(cell, timeout, now)
    return fresh


def end_of(messages: list[protocol.FromShim]) -> CellEnd:
    (end,) = messages
    assert isinstance(end, CellEnd)
    return end
