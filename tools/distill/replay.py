"""Replays exported conversations: executes their code again and compares what it shows."""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ...engine import SandboxConfig, open_sandbox
from ...engine.errors import SandboxLost, TaskError
from ...engine.runlog.events import Cell
from ...engine.sandbox import CellResult, Outcome, Sandbox
from ...engine.slices import Steps, finish
from ...engine.supervisor.blocks import code_blocks
from ...engine.supervisor.conversation import Conversation as LiveConversation
from ...engine.supervisor.loop import is_last
from ...engine.supervisor.transcript import show_results
from ...engine.toolbox.toolbox import Toolbox
from ...engine.trust import UNBOUND, Permissions
from ...handlers import Message
from ...sandbox_image.text import replace_surrogates
from .export import SOURCES
from .exported_lines import Source, SourceTable, find_files, read_lines
from .recorded_run import (
    NoReplay,
    RecordedRun,
    find_conversation,
    lower_limits,
    other_settings,
    read_settings,
    result_of,
)

# Earlier engines named the module of these errors in a traceback.
_OLD_ERROR_NAMES = re.compile(r"^supdist\.sandbox_image\.guest\.primitives\.(?=\w+Error\b)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TurnReport:
    """The comparison for one reply; ``why`` is the reason for ``unknown``."""

    turn: int
    verdict: Literal["equal", "different", "unknown"]
    why: str = ""
    exported: str = ""
    replayed: str = ""


@dataclass(frozen=True, slots=True)
class LineReport:
    """A line that was replayed, or why it was ``skipped``."""

    file: str
    line: int
    turns: tuple[TurnReport, ...] = ()
    skipped: str = ""
    # Against the exported line: somebody edited, shortened or added it.
    is_changed: bool = False
    # Settings of the run that the replay does not have, such as higher limits.
    other_settings: Mapping[str, object] = field(default_factory=dict[str, object])

    def count(self, verdict: str) -> int:
        """Return the number of turns with a verdict."""
        return sum(turn.verdict == verdict for turn in self.turns)


async def replay(
    path: Path,
    most: int | None = None,
    *,
    sandbox: SandboxConfig | None = None,
    permissions: Permissions = UNBOUND,
) -> AsyncIterator[LineReport]:
    """Replay the conversations of an export, one after another.

    Args:
        path: an export's folder, or one of its files.
        most: lines of each file, at most.
        sandbox: where the code runs; a log can only lower its limits.

    Raises:
        TaskError: it is no such export, or its logs may not be read.
        SandboxUnavailable: no sandbox can start here.
    """
    config = sandbox or SandboxConfig()
    for file in find_files(path):
        sources = SourceTable(file)
        for number, messages in enumerate(itertools.islice(read_lines(file), most), 1):
            source, is_changed = sources.find(number, messages)
            if source is None:
                why = f"{SOURCES} does not name its run"
                yield LineReport(file.name, number, skipped=why, is_changed=is_changed)
                continue
            turns: list[TurnReport] = []
            skipped, others = "", dict[str, object]()
            try:
                folder, conversation = find_conversation(source, file.parent, permissions)
                others = other_settings(read_settings(conversation), config)
                run = RecordedRun.read(folder, conversation, source.run_id)
                turns = await _replay_line(messages, source, run, lower_limits(config, run.sandbox))
            except NoReplay as reason:
                skipped = str(reason)
            yield LineReport(file.name, number, tuple(turns), skipped, is_changed, others)


async def _replay_line(
    messages: Sequence[Message], source: Source, run: RecordedRun, config: SandboxConfig
) -> list[TurnReport]:
    live = LiveConversation()
    start = run.conversation.start
    opened = open_sandbox(
        config,
        context=run.context,
        query=start.query,
        on_call=None if start.worker_model is None else run.answers.answer,
        tools=Toolbox().with_own(_own_tools(live, run.budgets)),
    )
    try:
        async with opened as sandbox:
            return await _Replay(messages, frozenset(source.left_out), run, live, sandbox).run()
    except TaskError as error:
        raise NoReplay(f"its sandbox: {error}") from error


def _own_tools(live: LiveConversation, budgets: deque[Any]) -> dict[str, Any]:
    async def budget() -> Any:
        """Return what is left of the run's budget."""
        return budgets.popleft() if budgets else {}

    async def history(start: int = 0, stop: int | None = None) -> list[dict[str, str]]:
        """Return the messages of this conversation."""
        return live.show(start, stop)

    return {"budget": budget, "history": history}


@dataclass(slots=True)
class _Replay:
    messages: Sequence[Message]
    left_out: frozenset[int]
    recorded: RecordedRun
    live: LiveConversation
    sandbox: Sandbox
    _reports: list[TurnReport] = field(default_factory=list[TurnReport])

    async def run(self) -> list[TurnReport]:
        conversation = self.recorded.conversation
        history = conversation.history
        for message in history[:2]:
            self.live.add(message["role"], message["content"])
        for turn, recorded in enumerate(conversation.turns, 1):
            at = len(recorded.sent)
            if at >= len(self.messages):
                break
            if not await self._turn(turn, at):
                break
            for message in history[at + 1 : at + 2]:
                self.live.add(message["role"], message["content"])
        if len(self.messages) > len(history):
            self._report(len(self._reports) + 1, self.messages[len(history)]["content"], "")
        return self._reports

    async def _turn(self, turn: int, at: int) -> bool:
        """Replay a reply. Return whether the next one can be replayed."""
        conversation = self.recorded.conversation
        recorded = conversation.turns[turn - 1]
        # The line has a note in the place of a reply that was left out; the log has the reply.
        reply = recorded.reply if at in self.left_out else self.messages[at]["content"]
        self.live.add("assistant", reply)
        cells = self.recorded.cells.take(recorded.reply, recorded.step)
        if conversation.stop_reason == "timeout" and cells and cells[-1].outcome == "killed":
            # The replay's machine may be faster or slower.
            self._report(turn, why="the run's time was up in the middle of it")
            return False
        results = await self._execute(reply, recorded.step, cells)
        if at + 1 < len(conversation.history):
            self._compare_shown(turn, at + 1, cells, results)
        else:
            self._compare_answer(turn, reply, results)
        return True

    async def _execute(self, reply: str, step: int, cells: Sequence[Cell]) -> list[CellResult]:
        self.recorded.answers.step = step
        results: list[CellResult] = []
        try:
            for number, code in enumerate(code_blocks(reply)):
                result = await self.sandbox.execute(code)
                # The supervisor was shown the seconds of the run.
                seconds = cells[number].elapsed if number < len(cells) else result.elapsed
                results.append(replace(result, elapsed=seconds))
                if is_last(result):
                    break
            if results and results[-1].state_lost and results[-1].outcome is not Outcome.PROTOCOL_VIOLATION:
                await self.sandbox.reset()
        except SandboxLost:
            # The run may have lost its sandbox here too; the comparison shows whether it did.
            pass
        return results

    def _compare_shown(
        self, turn: int, at: int, cells: Sequence[Cell], results: Sequence[CellResult]
    ) -> None:
        conversation = self.recorded.conversation
        if at >= len(self.messages):
            self._report(turn, why="the line ends before its outputs")
            return
        if at in self.left_out:
            self._report(turn, why="its outputs were left out")
            return
        reply, message = conversation.turns[turn - 1].reply, conversation.history[at]["content"]
        read = None
        recorded = self._show([result_of(cell) for cell in cells], reply, read)
        if not message.startswith(recorded):
            read = _as_written
            recorded = self._show([result_of(cell) for cell in cells], reply, read)
        if not message.startswith(recorded):
            self._report(turn, why="its outputs were not shown")
            return
        # What the engine wrote after the outputs is the same.
        replayed = self._show(results, self.messages[at - 1]["content"], read) + message[len(recorded) :]
        self._report(turn, self.messages[at]["content"], replace_surrogates(replayed))

    def _show(
        self, results: Sequence[CellResult], reply: str, read: Callable[[str], Steps[str]] | None
    ) -> str:
        blocks = code_blocks(reply)
        output_limit = self.recorded.conversation.start.output_limit
        return finish(show_results(results, len(blocks), output_limit, read)) if blocks else ""

    def _compare_answer(self, turn: int, reply: str, results: Sequence[CellResult]) -> None:
        conversation = self.recorded.conversation
        answer = next((result.final for result in results if result.final is not None), None)
        if conversation.turns[-1].is_best_answer:
            answer = reply.strip() if answer is None else answer
        elif conversation.stop_reason != "final":
            self._report(turn, why="its outputs were not shown")
            return
        self._report(turn, conversation.answer or "", answer or "")

    def _report(self, turn: int, exported: str = "", replayed: str = "", *, why: str = "") -> None:
        if why:
            report = TurnReport(turn, "unknown", why)
        # Output that depends on chance or time, such as the order of a set, is different too.
        elif _OLD_ERROR_NAMES.sub("", exported) == replayed:
            report = TurnReport(turn, "equal")
        else:
            report = TurnReport(turn, "different", exported=exported, replayed=replayed)
        self._reports.append(report)


def _as_written(text: str) -> Steps[str]:
    # Earlier engines showed output as the code wrote it, with escape sequences.
    yield
    return text
