"""Say of a turn why nothing was executed."""

from __future__ import annotations

from ..events import BlockStarted, Event, RunEnded, SupervisorReplied, TurnStarted
from ..supervisor.reply_notes import reply_kind

_WORDS = {
    "tool_call": "the reply was only a tool call",
    "refusal": "the model refused to answer",
    "cut": "the reply was cut off before it had whole code",
    "thoughts": "the reply was only thoughts",
    "empty": "the reply was empty",
    "prose": "the reply had no code",
}


def why_nothing_ran(text: str, finish_reason: str | None, *, has_thoughts: bool) -> str:
    """Return why a reply without a block has none."""
    kind = reply_kind(text, finish_reason, has_thoughts=has_thoughts)
    words = "the reply was a tool call and text" if kind == "tool_call" and text.strip() else _WORDS[kind]
    return f"{words}; nothing was executed"


class TurnsWithoutCode:
    """Watches a run for turns in which nothing was executed."""

    def __init__(self) -> None:
        """Nothing was replied yet."""
        self._reply: SupervisorReplied | None = None
        self._turn = 0

    def add(self, event: Event) -> str | None:
        """Take an event; return a line about the turn that it ends."""
        match event:
            case BlockStarted():
                self._reply = None
            # A second reply in a turn is the best answer, which may be prose.
            case SupervisorReplied(step=step):
                line = self._line()
                self._reply, self._turn = (event if step != self._turn else None), step
                return line
            case TurnStarted() | RunEnded():
                return self._line()
            case _:
                pass
        return None

    def _line(self) -> str | None:
        reply, self._reply = self._reply, None
        if reply is None:
            return None
        why = why_nothing_ran(reply.text, reply.finish_reason, has_thoughts=reply.thoughts > 0)
        return f"turn {reply.step}: {why}"
