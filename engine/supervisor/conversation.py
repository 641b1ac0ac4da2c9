"""What supervisor and engine have said: all of it, and the part that still fits the supervisor's window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import Template

from ...handlers import Message, Role

_HEAD, _TAIL = 2, 4
"""Messages that stay: the instructions and the question; the last two turns with their outputs."""

_WORTH = 400
"""Characters; what is shorter is not worth a note in its place."""


class Conversation:
    """A list of messages that only grows, and the same list with old ones left out.

    Attributes:
        history: every message, whole.
        sent: the same messages as the supervisor is sent them.
    """

    def __init__(self) -> None:
        self.history: list[Message] = []
        self.sent: list[Message] = []

    def say(self, role: Role, text: str) -> None:
        """Add a message."""
        for messages in (self.history, self.sent):
            messages.append({"role": role, "content": text})

    def take_back(self) -> str:
        """Remove the last message; its text."""
        self.sent.pop()
        return self.history.pop()["content"]

    def leave_out(self, fits: Callable[[Sequence[Message]], bool], note: str) -> list[int]:
        """Put notes in the place of old messages, outputs before the supervisor's own, until ``fits`` is content.

        Args:
            fits: whether the messages fit.
            note: what stands there instead. ``$number`` of the message, ``$characters`` of it.

        Returns:
            the numbers of those that were left out; none where nothing could be.
        """
        left_out: list[int] = []
        last = len(self.sent) - _TAIL
        for role in ("user", "assistant"):
            for number in range(_HEAD, last):
                if fits(self.sent):
                    return left_out
                text = self.sent[number]["content"]
                if self.sent[number]["role"] == role and text == self.history[number]["content"]:
                    short = Template(note).safe_substitute(number=number, characters=f"{len(text):,}")
                    if len(text) > _WORTH:
                        self.sent[number] = {"role": role, "content": short}
                        left_out.append(number)
        return left_out

    def show(self, start: int = 0, stop: int | None = None) -> list[dict[str, str]]:
        """The messages from ``start`` to ``stop``, whole, as a list of ``{"role": ..., "content": ...}``."""
        return [
            {"role": message["role"], "content": message["content"]} for message in self.history[start:stop]
        ]
