"""The conversation of supervisor and engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from string import Template

from ...handlers import Message, Role

# The instructions and the question at the head, and the last two turns with their outputs, always stay.
_HEAD, _TAIL = 2, 4

# A note takes about 100 characters, so it is not worth replacing a shorter message.
_MIN_CHARS = 400


class Conversation:
    """All messages in ``history``; in ``sent`` notes replace old ones."""

    def __init__(self) -> None:
        self.history: list[Message] = []
        self.sent: list[Message] = []

    def add(self, role: Role, text: str) -> None:
        """Add a message."""
        for messages in (self.history, self.sent):
            messages.append({"role": role, "content": text})

    def remove_last(self) -> str:
        """Remove the last message and return its text."""
        self.sent.pop()
        return self.history.pop()["content"]

    def leave_out(self, fits: Callable[[Sequence[Message]], bool], note: str) -> list[int]:
        """Replace old messages by notes until ``fits``, and return their numbers."""
        left_out: list[int] = []
        # Outputs first: the supervisor's own messages say what it tried.
        last = len(self.sent) - _TAIL
        for role in ("user", "assistant"):
            for number in range(_HEAD, last):
                if fits(self.sent):
                    return left_out
                text = self.sent[number]["content"]
                if self.sent[number]["role"] == role and text == self.history[number]["content"]:
                    short = Template(note).safe_substitute(number=number, characters=f"{len(text):,}")
                    if len(text) > _MIN_CHARS:
                        self.sent[number] = {"role": role, "content": short}
                        left_out.append(number)
        return left_out

    def show(self, start: int = 0, stop: int | None = None) -> list[dict[str, str]]:
        """Return messages ``start`` to ``stop`` as plain dicts."""
        return [
            {"role": message["role"], "content": message["content"]} for message in self.history[start:stop]
        ]
