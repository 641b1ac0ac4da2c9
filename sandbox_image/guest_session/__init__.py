"""One guest's session, without I/O. Its drivers are the shim and the image's MCP server."""

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
