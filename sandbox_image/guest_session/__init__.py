"""One guest's session, without I/O. Its drivers are the shim and the image's MCP server."""

from .collector import CellCollector, Collected, finish
from .session import Backlog, GuestSession, Measured, Send, Source
from .verdict import verdict_on_death

__all__ = [
    "Backlog",
    "CellCollector",
    "Collected",
    "GuestSession",
    "Measured",
    "Send",
    "Source",
    "finish",
    "verdict_on_death",
]
