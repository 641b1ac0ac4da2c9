"""Collect what a cell printed, showed and answered."""

from __future__ import annotations

from ..protocol import Display, Final, Output


class CellCollector:
    """Collects the messages of one cell."""

    def __init__(self) -> None:
        self._output = {1: bytearray(), 2: bytearray()}
        # By MIME type.
        self.displays: list[dict[str, str | bytes]] = []
        self.final: str | None = None

    def add(self, message: Output | Display | Final) -> None:
        """Add a message."""
        match message:
            case Output():
                self._output[message.stream] += message.data
            case Display():
                self.displays.append({**message.text, **message.images})  # type: ignore[dict-item]  # mypy does not widen a Literal key to str
            case Final():
                self.final = message.answer

    @property
    def stdout(self) -> str:
        """The text of fd 1, with U+FFFD for invalid UTF-8."""
        return self._output[1].decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """The text of fd 2."""
        return self._output[2].decode("utf-8", "replace")
