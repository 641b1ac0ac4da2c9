"""The conversations of runs, read back from their logs (``engine/runlog``): what a supervisor was sent, and what it said.

The logs are read as data that may be cut off, appended to, or changed by hand: lines that are no JSON are passed over,
and a run that does not fit together is no conversation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from ...engine.private_files import open_file
from ...engine.runlog.events import Stream
from ...engine.sandbox.config import CallCode
from ...handlers import Message
from ...sandbox_image.text import replace_surrogates

Unusable = Literal["no conversation", "direct call", "failed", "cut off", "unreadable"]


class NoConversation(Exception):
    """A run's log holds no whole conversation. ``reason`` is for counting."""

    def __init__(self, reason: Unusable, folder: Path) -> None:
        super().__init__(f"{folder}: {reason}")
        self.reason: Unusable = reason


class _Event(msgspec.Struct, frozen=True, tag_field="event"):
    run_id: str


class ContextFacts(msgspec.Struct, frozen=True):
    """Which document it was: ``file`` lies beside the logs, ``sha256`` is of the bytes that the sandbox got."""

    file: str
    sha256: str


class Start(_Event, frozen=True, tag="run_start"):
    """The question, and the settings."""

    query: str
    context: ContextFacts
    supervisor_model: str
    worker_model: str | None
    output_limit: int
    sandbox: dict[str, Any]
    tools: dict[str, str]


class _LeftOut(_Event, frozen=True, tag="left_out"):
    messages: list[int]
    notes: list[str]


class _Said(_Event, frozen=True, tag="supervisor"):
    step: int
    purpose: str
    messages: list[Message]
    response: str
    finish_reason: str


class _End(_Event, frozen=True, tag="run_end"):
    stop_reason: str | None = None
    answer: str | None = None


class WorkerAnswer(_Event, frozen=True, tag="worker"):
    """A prompt of a worker call, and its answer, or the kind of error and what the code was told of it."""

    step: int
    cell: int
    call: int
    index: int
    prompt: str
    model: str
    response: str | None = None
    finish_reason: str | None = None
    error: CallCode | None = None
    told: str = ""


class LoggedError(msgspec.Struct, frozen=True):
    """The exception that left a block."""

    type: str
    message: str
    traceback: str


class LoggedImage(msgspec.Struct, frozen=True):
    """What the log keeps of an image."""

    bytes: int
    sha256: str


class LoggedCell(_Event, frozen=True, tag="cell"):
    """A block, and all that it wrote and showed."""

    step: int
    cell: int
    code: str
    outcome: str
    stdout: str
    stderr: str
    display: list[dict[str, str | LoggedImage]]
    truncated: bool
    error: LoggedError | None
    final: str | None
    elapsed: float
    state_lost: bool
    detail: str


class ToolUse(_Event, frozen=True, tag="tool"):
    """A call of a tool that the engine answers."""

    tool: str
    result: Any = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A reply of the supervisor, and the request that it answers.

    Attributes:
        step: its turn, from 1; the best answer has its predecessor's.
        sent: the messages as they were sent, notes in the place of those that were left out.
        left_out: the numbers of these.
        reply: what it said.
        is_best_answer: whether it was asked for because a limit was reached.
        is_whole: whether the reply came to its end, neither cut off nor refused.
    """

    step: int
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
    """A run from its start to its end.

    Attributes:
        history: every message, whole.
        turns: one for each reply, in order; the attempts before it that failed are in no log.
        answer, stop_reason: as in ``RunResult``; a run that failed has no reason.
    """

    start: Start
    history: tuple[Message, ...]
    turns: tuple[Turn, ...]
    answer: str | None
    stop_reason: str | None

    @property
    def opening(self) -> tuple[Message, ...]:
        """The instructions and the question."""
        return self.history[:2]

    @property
    def stretches(self) -> list[Turn]:
        """The last turn before messages were left out, each time, and the last of all.

        A turn's request holds the earlier ones of its stretch, word for word, so these turns tell all that was said.
        """
        return [
            turn
            for turn, after in zip(self.turns, [*self.turns[1:], None], strict=True)
            if after is None or after.left_out != turn.left_out
        ]


def read_conversation(folder: Path, run_id: str) -> Conversation:
    """What a run's supervisor was sent and said, from ``folder/supervisor.jsonl``.

    Raises:
        NoConversation: there is none of this run, it has no end, or its events do not fit together.
    """
    reader = _Reader()
    try:
        for event in _events(folder, "supervisor", run_id, Start | _LeftOut | _Said | _End):
            reader.take(event)
    except (ValueError, LookupError):
        raise NoConversation("unreadable", folder) from None
    if reader.start is None or not reader.turns:
        raise NoConversation("no conversation", folder)
    if reader.end is None:
        raise NoConversation("cut off", folder)
    if not reader.is_whole:
        raise NoConversation("unreadable", folder)
    end = reader.end
    return Conversation(reader.start, tuple(reader.history), tuple(reader.turns), end.answer, end.stop_reason)


class _Reader:
    """Puts a conversation together, event by event."""

    def __init__(self) -> None:
        self.start: Start | None = None
        self.end: _End | None = None
        self.history: list[Message] = []
        self.turns: list[Turn] = []
        self._notes: dict[int, str] = {}

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing between the first event and the last: roles take turns, and steps are counted."""
        roles = [message["role"] for message in self.history]
        steps = [turn.step for turn in self.turns if not turn.is_best_answer]
        return (
            roles[0] == "system"
            and set(roles[1::2]) == {"user"}
            and set(roles[2::2]) == {"assistant"}
            and steps == list(range(1, len(steps) + 1))
        )

    def take(self, event: Start | _LeftOut | _Said | _End) -> None:
        """The next event.

        Raises:
            ValueError, LookupError: it does not fit those before.
        """
        match event:
            case Start():
                self.start = event
            case _End():
                self.end = event
            case _LeftOut():
                for number, note in zip(event.messages, event.notes, strict=True):
                    self.history[number]  # it has to be there
                    self._notes[number] = note
            case _Said():
                self.history += event.messages
                sent = tuple(self._as_sent(number) for number in range(len(self.history)))
                is_whole = event.finish_reason not in ("length", "refusal")
                is_best_answer = event.purpose == "best_answer"
                turn = Turn(
                    event.step, sent, frozenset(self._notes), event.response, is_best_answer, is_whole
                )
                self.turns.append(turn)
                self.history.append({"role": "assistant", "content": event.response})

    def _as_sent(self, number: int) -> Message:
        message = self.history[number]
        if number in self._notes:
            return {"role": message["role"], "content": self._notes[number]}
        return message


def worker_answers(folder: Path, run_id: str) -> Iterator[WorkerAnswer]:
    """The worker's answers, in the order in which they came."""
    return _events(folder, "worker", run_id, WorkerAnswer)


def cells(folder: Path, run_id: str) -> Iterator[LoggedCell]:
    """The blocks that were executed, in order."""
    return _events(folder, "repl", run_id, LoggedCell)


def tool_uses(folder: Path, run_id: str) -> Iterator[ToolUse]:
    """The calls of tools, in the order in which they ended."""
    return _events(folder, "repl", run_id, ToolUse)


def _events(folder: Path, stream: Stream, run_id: str, kind: Any) -> Iterator[Any]:
    """The events of one run that are of that kind; one folder may hold the logs of several attempts.

    Raises:
        NoConversation: one has not its shape. Lines that are no JSON were cut off, and are passed over.
    """
    tags = {each.__struct_config__.tag for each in get_args(kind) or (kind,)}
    try:
        lines = open_file(folder / f"{stream}.jsonl")
    except FileNotFoundError:
        return
    except OSError:  # a link, a FIFO, a file that may not be read
        raise NoConversation("unreadable", folder) from None
    with lines:
        for line in lines:
            try:
                data = json.loads(line.decode("utf-8", "replace"))
            except (ValueError, RecursionError):
                continue
            if isinstance(data, dict) and data.get("run_id") == run_id and data.get("event") in tags:  # pyright: ignore[reportUnknownMemberType]
                try:
                    yield msgspec.convert(data, kind)
                except msgspec.ValidationError:
                    raise NoConversation("unreadable", folder) from None


def cleaned(messages: Sequence[Message]) -> list[Message]:
    """The same messages, of text that is valid UTF-8."""
    return [
        {"role": message["role"], "content": replace_surrogates(message["content"])} for message in messages
    ]


def digest(value: object) -> str:
    """A SHA-256, in hexadecimal, of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
