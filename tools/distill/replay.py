"""Replays of exported conversations: their code is executed again, in a real sandbox, and must show the same.

The document and the worker's answers come from the run's own logs; no model is asked. The worker answers by content: a
prompt gets the answer that it got then, in whatever order threads ask. Of equal prompts with different answers each gets the
one of its own place, where there is such a place. The seconds that a block took are those of then.

The caller chooses the sandbox, since a log may come from anybody. A log can only lower a limit, so that a block that ran out
of time does so again.

What depends on chance or time (the order of a set of texts, an address, a clock) differs, and is reported so.
"""

from __future__ import annotations

import ast
import itertools
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from ...engine import SandboxConfig, open_sandbox
from ...engine.errors import SandboxLost, TaskError
from ...engine.private_files import open_file
from ...engine.sandbox import CallError, CellResult, Display, ErrorInfo, Outcome, Sandbox, Usage, WorkerCall
from ...engine.supervisor.blocks import code_blocks
from ...engine.supervisor.conversation import Conversation as Talk
from ...engine.supervisor.loop import is_last
from ...engine.supervisor.transcript import show_results
from ...engine.toolbox.toolbox import Toolbox
from ...engine.trust import UNBOUND, Permissions
from ...handlers import Message
from ...sandbox_image.text import KEEP_SURROGATES, replace_surrogates
from .conversations import (
    Conversation,
    LoggedCell,
    NoConversation,
    WorkerAnswer,
    cells,
    read_conversation,
    tool_uses,
    worker_answers,
)
from .export import SOURCES
from .formats import sha256_of
from .split import SIDES

_NO_ANSWER = CallError("unavailable", "the log has no answer to this prompt")

_LIMITS = (
    "timeout", "wall", "memory", "pids", "cpus", "cpu_seconds", "open_files", "scratch", "scratch_files", "output", "display",
    "prompt", "batch", "pending_calls", "calls_per_second",
)  # fmt: skip
"""Settings of a sandbox of which more allows more."""

_MOST_IMAGE_BYTES = 64 << 20

_Place = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class TurnReport:
    """What became of one message of the supervisor.

    Attributes:
        turn: its number in the line, from 1.
        verdict: whether what it led to is as exported; ``unknown`` where nothing is there to compare with.
        why: of what is unknown.
        exported, replayed: what differs.
    """

    turn: int
    verdict: Literal["equal", "different", "unknown"]
    why: str = ""
    exported: str = ""
    replayed: str = ""


@dataclass(frozen=True, slots=True)
class LineReport:
    """A line that was replayed, or why it was not.

    Attributes:
        turns: those that could be replayed.
        skipped: why none was.
        is_changed: whether the line is not as it was exported, be it but shorter.
        other_settings: the run's sandbox, where it had more than this one: higher limits, packages, an image.
    """

    file: str
    line: int
    turns: tuple[TurnReport, ...] = ()
    skipped: str = ""
    is_changed: bool = False
    other_settings: Mapping[str, object] = field(default_factory=dict[str, object])

    def count(self, verdict: str) -> int:
        """How many turns have that verdict."""
        return sum(turn.verdict == verdict for turn in self.turns)


class NoReplay(Exception):
    """This line cannot be replayed; the text says why."""


async def replay(
    path: Path,
    most: int | None = None,
    *,
    sandbox: SandboxConfig | None = None,
    permissions: Permissions = UNBOUND,
) -> AsyncIterator[LineReport]:
    """Replay the conversations of an export, one after another. Its lines may have been shuffled, or thinned out.

    Args:
        path: its folder, or one of its files.
        most: so many lines of each file at most.
        sandbox: what the code is run in. The log lowers its limits where the run had less, and changes nothing else.
        permissions: which folders of logs may be read.

    Raises:
        TaskError: it is no export of whole conversations, or names logs that may not be read.
        SandboxUnavailable: there is no sandbox to be had here.
    """
    config = sandbox or SandboxConfig()
    for file in _files(path):
        sources = _Sources(file)
        for number, messages in enumerate(itertools.islice(_lines(file), most), 1):
            source, is_changed = sources.find(number, messages)
            if source is None:
                why = f"{SOURCES} does not tell where it comes from"
                yield LineReport(file.name, number, skipped=why, is_changed=is_changed)
                continue
            turns: list[TurnReport] = []
            skipped, others = "", dict[str, object]()
            try:
                folder, told = _told(source, file.parent, permissions)
                then = _settings_of(told)
                others = _other_settings(then, config)
                turns = await _replay(messages, source, folder, told, _lowered(config, then))
            except NoReplay as reason:
                skipped = str(reason)
            yield LineReport(file.name, number, tuple(turns), skipped, is_changed, others)


class _Source(msgspec.Struct, frozen=True):
    """What replaying needs of a row of ``sources.jsonl``."""

    split: str
    line: int
    sha256: str
    run: str
    run_id: str
    left_out: list[int]


class _Line(msgspec.Struct, frozen=True):
    messages: list[Message]


def _files(path: Path) -> list[Path]:
    files = [path / f"{side}.jsonl" for side in SIDES] if path.is_dir() else [path]
    files = [file for file in files if file.is_file()]
    if not files:
        raise TaskError(f"{path} holds no exported conversations; name what `supdist-engine export` wrote")
    return files


class _Sources:
    """Where the lines of a file come from."""

    def __init__(self, file: Path) -> None:
        path = file.parent / SOURCES
        if not path.is_file():
            raise TaskError(f"{path} is missing: it tells in which logs the answers of the worker are")
        try:
            with open_file(path) as lines:
                rows = [msgspec.json.decode(line, type=_Source) for line in lines]
        except (OSError, ValueError, RecursionError):
            raise TaskError(
                f"{path} tells of no supervisor's conversations; only an export of them can be replayed"
            ) from None
        self._by_hash = {row.sha256: row for row in rows}
        self._by_line = {row.line: row for row in rows if row.split == file.stem}

    def find(self, number: int, messages: Sequence[Message]) -> tuple[_Source | None, bool]:
        """The source of a line, by its content, else by its place; and whether its content has changed."""
        found = self._by_hash.get(sha256_of({"messages": messages}))
        return (found, False) if found else (self._by_line.get(number), True)


def _lines(file: Path) -> Iterator[list[Message]]:
    try:
        opened = open_file(file)
    except OSError as error:
        raise TaskError(f"cannot read {file}: {error.strerror}") from error
    with opened as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield msgspec.json.decode(line, type=_Line).messages
            except (ValueError, RecursionError) as error:
                raise TaskError(
                    f"{file}, line {number}: {error}; only --format sft --per run is replayed"
                ) from None


def _told(source: _Source, base: Path, permissions: Permissions) -> tuple[Path, Conversation]:
    """The folder of a line's logs, and the conversation that they tell."""
    folder = permissions.readable(base / source.run, "run")
    try:
        told = read_conversation(folder, source.run_id)
    except NoConversation as error:
        raise NoReplay(f"its log: {error}") from error
    if told.start.tools:
        raise NoReplay(f"its code had tools that no log keeps: {', '.join(sorted(told.start.tools))}")
    return folder, told


def _settings_of(told: Conversation) -> SandboxConfig:
    """The sandbox of then; how tight its walls have to be is no log's to say."""
    try:
        return SandboxConfig.model_validate({**told.start.sandbox, "isolation": "strict"})
    except ValueError as error:
        raise NoReplay(f"the log's settings of the sandbox: {error}") from error


def _lowered(config: SandboxConfig, then: SandboxConfig) -> SandboxConfig:
    """The caller's sandbox, with the limits of then where they were lower."""
    lower = {name: min(getattr(config, name), getattr(then, name)) for name in _LIMITS}
    return config.model_copy(update=lower)


def _other_settings(then: SandboxConfig, config: SandboxConfig) -> dict[str, object]:
    """What code could notice then, and does not get back."""
    higher = {name: value for name in _LIMITS if (value := getattr(then, name)) > getattr(config, name)}
    others = {
        name: value
        for name in ("packages", "backend", "image", "runtime")
        if (value := getattr(then, name)) != getattr(config, name)
    }
    return higher | others


async def _replay(
    messages: Sequence[Message],
    source: _Source,
    folder: Path,
    told: Conversation,
    config: SandboxConfig,
) -> list[TurnReport]:
    try:
        log = _Log(told, list(cells(folder, source.run_id)))
        answers = _Answers(worker_answers(folder, source.run_id))
        budgets = deque(
            use.result
            for use in tool_uses(folder, source.run_id)
            if use.tool == "budget" and use.error is None
        )
    except NoConversation as error:
        raise NoReplay(f"its log: {error}") from error
    context = _context(folder, told)
    talk = Talk()
    opened = open_sandbox(
        config,
        context=context,
        query=told.start.query,
        on_call=None if told.start.worker_model is None else answers.answer,
        tools=Toolbox().with_own(_own_tools(talk, budgets)),
    )
    try:
        async with opened as sandbox:
            return await _Replay(messages, frozenset(source.left_out), log, answers, talk, sandbox).run()
    except TaskError as error:
        raise NoReplay(f"its sandbox: {error}") from error


def _own_tools(talk: Talk, budgets: deque[Any]) -> dict[str, Any]:
    """What ``budget`` and ``history`` gave then."""

    async def budget() -> Any:
        """What is left of the run's budget."""
        return budgets.popleft() if budgets else {}

    async def history(start: int = 0, stop: int | None = None) -> list[dict[str, str]]:
        """The messages of this conversation."""
        return talk.show(start, stop)

    return {"budget": budget, "history": history}


def _context(folder: Path, told: Conversation) -> object:
    """The document as it is kept beside the logs."""
    name = told.start.context.file
    if Path(name).name != name:
        raise NoReplay("its document is not beside its logs")
    try:
        with open_file(folder / name) as file:
            text = file.read().decode("utf-8", KEEP_SURROGATES)
    except (OSError, UnicodeDecodeError):
        raise NoReplay("its document is not beside its logs") from None
    try:
        if name.endswith(".json"):
            return json.loads(text)
        return ast.literal_eval(text) if name.endswith(".repr.txt") else text
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise NoReplay("its document cannot be read back") from None


class _Answers:
    """The worker: each prompt is answered as it was."""

    def __init__(self, logged: Iterable[WorkerAnswer]) -> None:
        self.step = 0
        self._left: dict[str, dict[_Place, str | CallError]] = defaultdict(dict)
        for answer in sorted(logged, key=_place_of):
            self._left[answer.prompt][_place_of(answer)] = _result_of(answer)

    async def answer(self, call: WorkerCall) -> list[str | CallError]:
        """What the prompts of a call were answered."""
        places = [(self.step, call.cell, call.call, index) for index in range(len(call.prompts))]
        return [self._take(prompt, place) for prompt, place in zip(call.prompts, places, strict=True)]

    def _take(self, prompt: str, place: _Place) -> str | CallError:
        left = self._left.get(prompt)
        if not left:
            return _NO_ANSWER
        return left.pop(place if place in left else next(iter(left)))


def _place_of(answer: WorkerAnswer) -> _Place:
    return answer.step, answer.cell, answer.call, answer.index


def _result_of(answer: WorkerAnswer) -> str | CallError:
    if answer.error is not None:
        return CallError(answer.error, answer.told)
    return answer.response or ""


class _Log:
    """What was executed and shown then."""

    def __init__(self, told: Conversation, logged: Sequence[LoggedCell]) -> None:
        self.told = told
        self._cells = deque(logged)

    def cells(self, reply: str, step: int) -> list[LoggedCell]:
        """The blocks of a reply that were executed; replies are asked for in order, once each."""
        found: list[LoggedCell] = []
        for _ in code_blocks(reply):
            if not self._cells or self._cells[0].step != step:
                break
            found.append(self._cells.popleft())
            if is_last(result_of(found[-1])):
                break
        return found


def result_of(cell: LoggedCell) -> CellResult:
    """A block's result as the supervisor was shown it. Of images there are but the sizes.

    Raises:
        NoReplay: the log tells of a result that cannot be.
    """
    try:
        outcome = Outcome(cell.outcome)
        shown = tuple(
            Display(
                {mime: form if isinstance(form, str) else _image(form.bytes) for mime, form in each.items()}
            )
            for each in cell.display
        )
    except ValueError as error:
        raise NoReplay(f"its log: {error}") from error
    told = cell.error
    raised = None if told is None else ErrorInfo(told.type, told.message, told.traceback)
    return CellResult(
        cell.cell, outcome, cell.stdout, cell.stderr, cell.truncated, raised, cell.final, cell.elapsed, 0.0,
        cell.state_lost, 0, Usage(0.0, 0, "none"), cell.detail, shown,
    )  # fmt: skip


def _image(size: int) -> bytes:
    if not 0 <= size <= _MOST_IMAGE_BYTES:
        raise ValueError(f"an image of {size} bytes")
    return bytes(size)


@dataclass(slots=True)
class _Replay:
    """One conversation, told again."""

    messages: Sequence[Message]
    left_out: frozenset[int]
    log: _Log
    answers: _Answers
    talk: Talk
    sandbox: Sandbox
    _reports: list[TurnReport] = field(default_factory=list[TurnReport])

    async def run(self) -> list[TurnReport]:
        """Execute each turn, and compare what comes of it."""
        history = self.log.told.history
        for message in history[:2]:
            self.talk.say(message["role"], message["content"])
        for turn, logged in enumerate(self.log.told.turns, 1):
            at = len(logged.sent)
            if at >= len(self.messages):
                break
            if not await self._turn(turn, at):
                break
            for message in history[at + 1 : at + 2]:
                self.talk.say(message["role"], message["content"])
        if len(self.messages) > len(history):
            self._report(len(self._reports) + 1, self.messages[len(history)]["content"], "")
        return self._reports

    async def _turn(self, turn: int, at: int) -> bool:
        """Replay a reply; whether what follows can be replayed, too."""
        logged = self.log.told.turns[turn - 1]
        reply = logged.reply if at in self.left_out else self.messages[at]["content"]
        self.talk.say("assistant", reply)
        then = self.log.cells(logged.reply, logged.step)
        if self.log.told.stop_reason == "timeout" and then and then[-1].outcome == "killed":
            self._report(turn, why="the run's time was up in the middle of it")
            return False
        now = await self._execute(reply, logged.step, then)
        if at + 1 < len(self.log.told.history):
            self._compare_shown(turn, at + 1, then, now)
        else:
            self._compare_answer(turn, reply, now)
        return True

    async def _execute(self, reply: str, step: int, then: Sequence[LoggedCell]) -> list[CellResult]:
        """The blocks of a reply, up to the last, as in the loop; with the seconds of then."""
        self.answers.step = step
        results: list[CellResult] = []
        try:
            for number, code in enumerate(code_blocks(reply)):
                result = await self.sandbox.execute(code)
                seconds = then[number].elapsed if number < len(then) else result.elapsed
                results.append(replace(result, elapsed=seconds))
                if is_last(result):
                    break
            if results and results[-1].state_lost and results[-1].outcome is not Outcome.PROTOCOL_VIOLATION:
                await self.sandbox.reset()
        except SandboxLost:
            pass  # as it was then, if it was: what is missing differs
        return results

    def _compare_shown(
        self, turn: int, at: int, then: Sequence[LoggedCell], now: Sequence[CellResult]
    ) -> None:
        """What the next message shows: the outputs of now, and what the engine said after those of then."""
        told = self.log.told
        if at >= len(self.messages):
            self._report(turn, why="the line ends before its outputs")
            return
        if at in self.left_out:
            self._report(turn, why="its outputs were left out")
            return
        logged_reply, message = told.turns[turn - 1].reply, told.history[at]["content"]
        shown_then = self._show([result_of(cell) for cell in then], logged_reply)
        if not message.startswith(shown_then):
            self._report(turn, why="its outputs were not shown")
            return
        replayed = self._show(now, self.messages[at - 1]["content"]) + message[len(shown_then) :]
        self._report(turn, self.messages[at]["content"], replace_surrogates(replayed))

    def _show(self, results: Sequence[CellResult], reply: str) -> str:
        blocks = code_blocks(reply)
        return show_results(results, len(blocks), self.log.told.start.output_limit) if blocks else ""

    def _compare_answer(self, turn: int, reply: str, now: Sequence[CellResult]) -> None:
        """The last reply: nothing was shown of it, but it gave the answer."""
        told = self.log.told
        answer = next((result.final for result in now if result.final is not None), None)
        if told.turns[-1].is_best_answer:
            answer = reply.strip() if answer is None else answer
        elif told.stop_reason != "final":
            self._report(turn, why="its outputs were not shown")
            return
        self._report(turn, told.answer or "", answer or "")

    def _report(self, turn: int, exported: str = "", replayed: str = "", *, why: str = "") -> None:
        if why:
            report = TurnReport(turn, "unknown", why)
        elif exported == replayed:
            report = TurnReport(turn, "equal")
        else:
            report = TurnReport(turn, "different", exported=exported, replayed=replayed)
        self._reports.append(report)
