"""Collect what a cell printed, showed and answered."""

from __future__ import annotations

from ..protocol import Display, Final, Output

# Growing a buffer of 16 MiB would stop an event loop for 20 ms.
_PIECE_BYTES = 1 << 18


class CellCollector:
    """Collects the messages of one cell."""

    def __init__(self) -> None:
        # By stream, in pieces of about ``_PIECE_BYTES``.
        self.output: dict[int, list[bytearray]] = {1: [], 2: []}
        # By MIME type.
        self.displays: list[dict[str, str | bytes]] = []
        self.final: str | None = None

    def add(self, message: Output | Display | Final) -> None:
        """Add a message."""
        match message:
            case Output():
                pieces = self.output[message.stream]
                if pieces and len(pieces[-1]) < _PIECE_BYTES:
                    pieces[-1] += message.data
                else:
                    pieces.append(bytearray(message.data))
            case Display():
                self.displays.append({**message.text, **message.images})  # type: ignore[dict-item]  # mypy does not widen a Literal key to str
            case Final():
                self.final = message.answer

    @property
    def stdout(self) -> str:
        """The text of fd 1, with U+FFFD for invalid UTF-8."""
        return b"".join(self.output[1]).decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """The text of fd 2."""
        return b"".join(self.output[2]).decode("utf-8", "replace")
