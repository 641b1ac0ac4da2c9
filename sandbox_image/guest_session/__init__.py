"""One guest's session without I/O: the shim and the MCP server of the image drive it."""

from .collector import CellCollector
from .session import Backlog, GuestSession, Measured, Send, Source
from .verdict import verdict_on_death

__all__ = [
    "Backlog",
    "CellCollector",
    "GuestSession",
    "Measured",
    "Send",
    "Source",
    "verdict_on_death",
]
