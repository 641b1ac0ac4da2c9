"""What a cell printed, showed and answered, for its caller."""

from __future__ import annotations

from ..protocol import Display, Final, Output


class CellCollector:
    """Collects the messages of one cell.

    Attributes:
        displays: mappings from MIME types to text or bytes.
        final: the answer; None until there is one.
    """

    def __init__(self) -> None:
        self._output = {1: bytearray(), 2: bytearray()}
        self.displays: list[dict[str, str | bytes]] = []
        self.final: str | None = None

    def add(self, message: Output | Display | Final) -> None:
        """Add a message of the cell."""
        match message:
            case Output():
                self._output[message.stream] += message.data
            case Display():
                self.displays.append({**message.text, **message.images})  # type: ignore[dict-item]  # mypy does not widen a Literal key to str
            case Final():
                self.final = message.answer

    @property
    def stdout(self) -> str:
        """The text that was written to fd 1; U+FFFD replaces what is not UTF-8."""
        return self._output[1].decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """The text that was written to fd 2."""
        return self._output[2].decode("utf-8", "replace")
