"""Reads the conversations of runs from run logs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ...engine.errors import LogFormatError
from ...engine.runlog.events import (
    Cell,
    Event,
    LeftOut,
    RunEnd,
    RunStart,
    SupervisorCall,
    SupervisorEvent,
    ToolCall,
    WorkerCall,
)
from ...engine.runlog.reader import RunLogReader
from ...handlers import Message
from ...sandbox_image.text import replace_surrogates

Unusable = Literal["no conversation", "direct call", "failed", "cut off", "unreadable", "shortened"]

E = TypeVar("E")
V = TypeVar("V", bound=Event)


class NoConversation(Exception):
    """A log holds no whole conversation; ``reason`` is for counting."""

    def __init__(self, reason: Unusable, folder: Path, why: str = "") -> None:
        super().__init__(why or f"{folder}: {reason}")
        self.reason: Unusable = reason


@dataclass(frozen=True, slots=True)
class Settings:
    """The question and the settings of a run, as in ``RunStart``."""

    query: str
    context_file: str
    context_sha256: str
    worker_model: str | None
    output_limit: int
    sandbox: dict[str, Any]
    tools: dict[str, str]


@dataclass(frozen=True, slots=True)
class Turn:
    """A reply of the supervisor, and its request."""

    # The best answer has the step of the turn before it.
    step: int
    # Notes replace the messages that were left out.
    sent: tuple[Message, ...]
    left_out: frozenset[int]
    reply: str
    is_best_answer: bool
    is_whole: bool

    @property
    def messages(self) -> list[Message]:
        """The request and its reply."""
        return [*self.sent, {"role": "assistant", "content": self.reply}]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A run from its start to its end; ``notes`` name lines that were skipped."""

    start: Settings
    history: tuple[Message, ...]
    turns: tuple[Turn, ...]
    answer: str | None
    stop_reason: str | None
    notes: tuple[str, ...] = ()

    @property
    def opening(self) -> tuple[Message, ...]:
        """The instructions and the question."""
        return self.history[:2]

    @property
    def stretches(self) -> list[Turn]:
        """The last turn of all, and the last before each time that messages were left out."""
        # The request of a turn holds the earlier turns of its stretch, so these turns hold all messages.
        return [
            turn
            for turn, after in zip(self.turns, [*self.turns[1:], None], strict=True)
            if after is None or after.left_out != turn.left_out
        ]


def read_conversation(folder: Path, run_id: str) -> Conversation:
    """Read the conversation of a run, or raise ``NoConversation``."""
    log = RunLogReader(folder, run_id)
    builder = _Builder()
    try:
        for event in _convert_errors(log.supervisor(), folder):
            builder.add(_whole(log, event))
    except (ValueError, LookupError) as error:
        why = f"{folder / 'supervisor.jsonl'}: its events do not fit together ({error})"
        raise NoConversation("unreadable", folder, why) from None
    if builder.start is None or not builder.turns:
        raise NoConversation("no conversation", folder)
    if builder.end is None:
        raise NoConversation("cut off", folder)
    if not builder.is_whole:
        why = f"{folder / 'supervisor.jsonl'}: a turn is missing, or out of order"
        raise NoConversation("unreadable", folder, why)
    end = builder.end
    return Conversation(
        builder.start,
        tuple(builder.history),
        tuple(builder.turns),
        end.answer,
        end.stop_reason,
        tuple(log.notes()),
    )


@dataclass(slots=True)
class _Builder:
    start: Settings | None = None
    end: RunEnd | None = None
    history: list[Message] = field(default_factory=list[Message])
    turns: list[Turn] = field(default_factory=list[Turn])
    _notes: dict[int, str] = field(default_factory=dict[int, str])

    @property
    def is_whole(self) -> bool:
        roles = [message["role"] for message in self.history]
        steps = [turn.step for turn in self.turns if not turn.is_best_answer]
        return (
            roles[0] == "system"
            and set(roles[1::2]) == {"user"}
            and set(roles[2::2]) == {"assistant"}
            and steps == list(range(1, len(steps) + 1))
        )

    def add(self, event: SupervisorEvent) -> None:
        # Raises ValueError or LookupError if the event does not fit those before.
        match event:
            case RunStart():
                self.start = _settings(event)
            case RunEnd():
                self.end = event
            case LeftOut():
                for number, note in zip(event.messages, event.notes, strict=True):
                    self.history[number]  # raises IndexError if there is no such message
                    self._notes[number] = note
            case SupervisorCall():
                self._add_turn(event)
            case _:
                pass

    def _add_turn(self, event: SupervisorCall) -> None:
        # A request without a reply is the last one, and no turn.
        if event.error is not None:
            return
        if event.response is None:
            raise ValueError("a reply without its text")
        self.history += event.messages
        sent = tuple(self._as_sent(number) for number in range(len(self.history)))
        is_best_answer = event.purpose == "best_answer"
        turn = Turn(event.step, sent, frozenset(self._notes), event.response, is_best_answer, event.is_whole)
        self.turns.append(turn)
        self.history.append({"role": "assistant", "content": event.response})

    def _as_sent(self, number: int) -> Message:
        message = self.history[number]
        if number in self._notes:
            return {"role": message["role"], "content": self._notes[number]}
        return message


def _settings(start: RunStart) -> Settings:
    if start.output_limit is None or start.sandbox is None or start.tools is None:
        raise ValueError("a run_start without output_limit, sandbox or tools")
    return Settings(
        start.query, start.context.file, start.context.sha256, start.worker_model, start.output_limit,
        start.sandbox, start.tools,
    )  # fmt: skip


def worker_answers(folder: Path, run_id: str) -> Iterator[WorkerCall]:
    """Yield the worker calls of a run, whole, as they ended."""
    log = RunLogReader(folder, run_id)
    return (
        _whole(log, event) for event in _convert_errors(log.worker(), folder) if isinstance(event, WorkerCall)
    )


def cells(folder: Path, run_id: str) -> Iterator[Cell]:
    """Yield the cells of a run, whole."""
    log = RunLogReader(folder, run_id)
    return (_whole(log, event) for event in _convert_errors(log.repl(), folder) if isinstance(event, Cell))


def has_errors(folder: Path, run_id: str) -> bool:
    """Return whether a cell or a worker call of a run failed."""
    log = RunLogReader(folder, run_id)
    return any(
        event.outcome != "ok" for event in _convert_errors(log.repl(), folder) if isinstance(event, Cell)
    ) or any(
        event.error is not None
        for event in _convert_errors(log.worker(), folder)
        if isinstance(event, WorkerCall)
    )


def tool_calls(folder: Path, run_id: str) -> Iterator[ToolCall]:
    """Yield the calls of host tools, as they ended."""
    events = RunLogReader(folder, run_id).repl()
    return (event for event in _convert_errors(events, folder) if isinstance(event, ToolCall))


def _whole(log: RunLogReader, event: V) -> V:
    try:
        return log.whole(event)
    except LogFormatError as error:
        raise NoConversation("shortened", log.folder, f"an event is not whole: {error}") from None


# Callers count runs by reason, so every failure of a log is a NoConversation.
def _convert_errors(events: Iterable[E], folder: Path) -> Iterator[E]:
    try:
        yield from events
    except LogFormatError as error:
        raise NoConversation("unreadable", folder, str(error)) from None


def cleaned(messages: Sequence[Message]) -> list[Message]:
    """Return the messages as valid UTF-8, which readers of JSON need."""
    return [
        {"role": message["role"], "content": replace_surrogates(message["content"])} for message in messages
    ]


def digest(value: object) -> str:
    """Return the SHA-256 of plain data, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
