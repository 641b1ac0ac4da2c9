"""Reads from a run log what a replay needs."""

from __future__ import annotations

import ast
import json
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine import SandboxConfig
from ...engine.private_files import read_file, resolved
from ...engine.runlog.events import Cell, ImageFacts, WorkerCall
from ...engine.sandbox import CallError, CellResult, Display, ErrorInfo, Outcome, Usage
from ...engine.sandbox import WorkerCall as GuestCall
from ...engine.supervisor.blocks import code_blocks
from ...engine.supervisor.loop import is_last
from ...engine.trust import Permissions
from ...sandbox_image.text import KEEP_SURROGATES
from .conversations import (
    Conversation,
    NoConversation,
    cells,
    read_conversation,
    tool_calls,
    worker_answers,
)
from .exported_lines import Source

_NO_ANSWER = CallError("unavailable", "the log has no answer to this prompt")

# A log names the size of an image, and the replay allocates that much: at most this for all of a turn.
_MAX_IMAGE_BYTES = 64 << 20
_MAX_IMAGES = 10_000
# It is read whole, into the memory of this process and of the sandbox.
_MAX_CONTEXT_BYTES = 1 << 30

# Settings of a sandbox that allow more when they are higher.
_LIMITS = (
    "timeout", "wall", "memory", "pids", "cpus", "cpu_seconds", "open_files", "scratch", "scratch_files",
    "output", "display", "prompt", "batch", "pending_calls", "calls_per_second",
)  # fmt: skip

_Place = tuple[int, int, int, int]


class NoReplay(Exception):
    """This line cannot be replayed."""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run from its log; ``budgets`` are the results of ``budget()``."""

    conversation: Conversation
    context: object
    sandbox: SandboxConfig
    cells: RecordedCells
    answers: RecordedAnswers
    budgets: deque[Any]

    @classmethod
    def read(cls, folder: Path, conversation: Conversation, run_id: str) -> RecordedRun:
        """Read the rest of a run, or raise ``NoReplay``."""
        try:
            recorded = RecordedCells(list(cells(folder, run_id)))
            answers = RecordedAnswers(worker_answers(folder, run_id))
            budgets = deque(
                call.result
                for call in tool_calls(folder, run_id)
                if call.tool == "budget" and call.error is None
            )
        except NoConversation as error:
            raise NoReplay(f"its log: {error}") from error
        context = _read_context(folder, conversation)
        return cls(conversation, context, read_settings(conversation), recorded, answers, budgets)


def find_conversation(source: Source, base: Path, permissions: Permissions) -> tuple[Path, Conversation]:
    """Return the folder of a line's log, and its conversation.

    Raises:
        NoReplay, TaskError: there is none, or it may not be read.
    """
    folder = permissions.readable(base / source.run, "run")
    try:
        conversation = read_conversation(folder, source.run_id)
    except NoConversation as error:
        raise NoReplay(f"its log: {error}") from error
    # Tools are the user's functions, and a log has only their names.
    if conversation.start.tools:
        names = ", ".join(sorted(conversation.start.tools))
        raise NoReplay(f"its code had tools, which a log does not contain: {names}")
    return folder, conversation


def read_settings(conversation: Conversation) -> SandboxConfig:
    """Return the settings of the run's sandbox, or raise ``NoReplay``."""
    try:
        # The level of isolation is the caller's to choose, not the log's.
        return SandboxConfig.model_validate({**conversation.start.sandbox, "isolation": "strict"})
    except ValueError as error:
        raise NoReplay(f"the log's settings of the sandbox: {error}") from error


def lower_limits(config: SandboxConfig, recorded: SandboxConfig) -> SandboxConfig:
    """Return the caller's settings, with the run's limits where they were lower."""
    # A block that ran out of time must do so again. A log may come from anybody, so it raises nothing.
    lower = {name: min(getattr(config, name), getattr(recorded, name)) for name in _LIMITS}
    return config.model_copy(update=lower)


def other_settings(recorded: SandboxConfig, config: SandboxConfig) -> dict[str, object]:
    """Return the run's settings that the replay does not have."""
    higher = {name: value for name in _LIMITS if (value := getattr(recorded, name)) > getattr(config, name)}
    others = {
        name: value
        for name in ("packages", "backend", "image", "runtime")
        if (value := getattr(recorded, name)) != getattr(config, name)
    }
    return higher | others


def _read_context(folder: Path, conversation: Conversation) -> object:
    name = conversation.start.context_file
    missing = "its document is not beside its logs"
    if Path(name).name != name:
        raise NoReplay(missing)
    try:
        text = read_file(resolved(folder) / name, _MAX_CONTEXT_BYTES).decode("utf-8", KEEP_SURROGATES)
    except (OSError, UnicodeDecodeError):
        raise NoReplay(missing) from None
    try:
        if name.endswith(".json"):
            return json.loads(text)
        return ast.literal_eval(text) if name.endswith(".repr.txt") else text
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise NoReplay("its document cannot be read back") from None


class RecordedAnswers:
    """The worker of a replay; ``step`` is the turn."""

    def __init__(self, recorded: Iterable[WorkerCall]) -> None:
        self.step = 0
        self._left: dict[str, dict[_Place, str | CallError]] = defaultdict(dict)
        for call in sorted(recorded, key=_place_of):
            self._left[call.prompt][_place_of(call)] = _answer_of(call)

    async def answer(self, call: GuestCall) -> list[str | CallError]:
        """Return the recorded answers."""
        places = [(self.step, call.cell, call.call, index) for index in range(len(call.prompts))]
        return [self._take(prompt, place) for prompt, place in zip(call.prompts, places, strict=True)]

    def _take(self, prompt: str, place: _Place) -> str | CallError:
        # By content, since threads may ask in another order. Equal prompts go by their places.
        left = self._left.get(prompt)
        if not left:
            return _NO_ANSWER
        return left.pop(place if place in left else next(iter(left)))


def _place_of(call: WorkerCall) -> _Place:
    return call.step, call.cell, call.call, call.index


def _answer_of(call: WorkerCall) -> str | CallError:
    if call.error is not None:
        return CallError(call.error, call.told or "")
    return call.response or ""


class RecordedCells:
    """The cells of a run, in order."""

    def __init__(self, recorded: Sequence[Cell]) -> None:
        self._left = deque(recorded)

    def take(self, reply: str, step: int) -> list[Cell]:
        """Return the cells of the next reply."""
        found: list[Cell] = []
        for _ in code_blocks(reply):
            if not self._left or self._left[0].step != step:
                break
            found.append(self._left.popleft())
            _check_images(found)
            if is_last(result_of(found[-1])):
                break
        return found


def result_of(cell: Cell) -> CellResult:
    """Return a cell's result as the supervisor saw it, or raise ``NoReplay``."""
    _check_images([cell])
    try:
        outcome = Outcome(cell.outcome)
        display = tuple(
            Display(
                {
                    mime: bytes(form.bytes) if isinstance(form, ImageFacts) else form
                    for mime, form in each.items()
                }
            )
            for each in cell.display
        )
    except ValueError as problem:
        raise NoReplay(f"its log: {problem}") from problem
    error = cell.error
    raised = ErrorInfo(error.type, error.message, error.traceback) if error else None
    return CellResult(
        cell.cell, outcome, cell.stdout, cell.stderr, cell.truncated, raised, cell.final, cell.elapsed, 0.0,
        cell.state_lost, 0, Usage(0.0, 0, "none"), cell.detail, display,
    )  # fmt: skip


def _check_images(cells: Sequence[Cell]) -> None:
    forms = (form for cell in cells for each in cell.display for form in each.values())
    sizes = [form.bytes for form in forms if isinstance(form, ImageFacts)]
    if any(size < 0 for size in sizes) or sum(sizes) > _MAX_IMAGE_BYTES or len(sizes) > _MAX_IMAGES:
        raise NoReplay(f"its log: images of a wrong size, or above {_MAX_IMAGE_BYTES >> 20} MiB in a turn")
