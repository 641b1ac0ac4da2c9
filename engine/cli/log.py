"""The command ``supdist-engine log``: print the log of a run for a person."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...sandbox_image.text import counted

if TYPE_CHECKING:
    from ..runlog.events import Cell, ModelCall, RunEnd, RunStart, SupervisorCall, ToolCall
    from ..runlog.reader import RunLogReader

_LINES = 20
# A line that is longer is cut, too.
_COLUMNS = 500


def log(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder of the log. Default: the newest in logs/runs.")
    ] = None,
    *,
    whole: Annotated[
        bool, typer.Option("--whole", help=f"Print texts whole, not {_LINES} lines of each.")
    ] = False,
) -> None:
    """Print what a run asked, wrote, executed, answered and cost."""
    from ..errors import LogFormatError, TaskError
    from ..runlog.reader import RunLogReader

    place = folder or _newest()
    _check_readable(place)
    if not (place / "supervisor.jsonl").is_file():
        raise TaskError(f"{place}: there is no log of a run: a log has a supervisor.jsonl")
    reader = RunLogReader(place)
    try:
        for line in _lines(reader, None if whole else _LINES):
            print(line)
    except LogFormatError as error:
        raise TaskError(str(error)) from error
    for note in reader.notes():
        print(f"note: {note}")


def _newest() -> Path:
    from ..errors import TaskError
    from .kept_runs import RUNS, run_names

    names = run_names()
    if not names:
        _check_readable(RUNS)
        raise TaskError(f"there is no run in {RUNS}; name the folder of a log")
    return RUNS / names[-1]


def _check_readable(folder: Path) -> None:
    from ..errors import TaskError

    try:
        os.scandir(folder).close()
    except PermissionError as error:
        raise TaskError(f"cannot read the folder {folder}: {error.strerror}") from error
    except OSError:
        # What is missing, or is no folder, has no log.
        return


def _lines(reader: RunLogReader, most: int | None) -> Iterator[str]:
    from ...sandbox_image.text import printable
    from ..runlog.events import Cell, LeftOut, RunEnd, RunStart, SupervisorCall, ToolCall

    # The last turn of each run, until a block of it comes.
    without_code: dict[str, SupervisorCall] = {}
    # Events of several runs in a folder keep their order, too.
    for event in heapq.merge(reader.supervisor(), reader.repl(), key=lambda each: each.timestamp):
        if isinstance(event, SupervisorCall | RunEnd) and (last := without_code.pop(event.run_id, None)):
            yield _nothing_ran(last)
        match event:
            case RunStart():
                lines = _start(event)
            case SupervisorCall():
                lines = _turn(event, most)
                if event.purpose == "turn" and event.error is None:
                    without_code[event.run_id] = event
            case Cell():
                without_code.pop(event.run_id, None)
                lines = _cell(event, most)
            case ToolCall():
                lines = _tool(event)
            case LeftOut():
                lines = [f"  {len(event.messages):,} messages are not sent any more"]
            case RunEnd():
                lines = [_workers(reader, event.run_id), *_end(event, most)]
            case _:
                continue
        # What models and guests wrote could hold escape sequences.
        yield from map(printable, lines)


def _start(event: RunStart) -> list[str]:
    context = event.context
    size = "" if context.bytes is None else f", {counted(context.bytes, 'byte')}"
    return [
        f"run {event.run_id} · supdist-engine {event.engine_version}",
        f"supervisor {event.supervisor_model} · worker {event.worker_model}",
        f"context: {context.file}{size}",
        f"question: {event.query}",
    ]


def _turn(event: SupervisorCall, most: int | None) -> list[str]:
    why = "" if event.purpose == "turn" else f" ({event.purpose.replace('_', ' ')})"
    lines = ["", f"turn {event.step}{why}: {_call(event)}"]
    if event.error is not None:
        return [*lines, f"  failed: {event.error}: {event.message}"]
    cut = ["  the reply was cut off at max_tokens"] if event.finish_reason == "length" else []
    thoughts = [f"  it thought, {len(event.reasoning):,} characters"] if event.reasoning else []
    return [*lines, *thoughts, *_text(event.response or "", most), *cut]


def _nothing_ran(event: SupervisorCall) -> str:
    from .no_code import why_nothing_ran

    why = why_nothing_ran(event.response or "", event.finish_reason, has_thoughts=bool(event.reasoning))
    return f"  {why}"


def _cell(event: Cell, most: int | None) -> list[str]:
    name = f": {event.error.type}: {event.error.message}" if event.error else ""
    lines = [f"  block {event.outcome}{name}, {event.elapsed:.1f} s"]
    for text in (event.stdout, event.stderr):
        lines += _text(text, most, "  | ")
    return lines


def _tool(event: ToolCall) -> list[str]:
    failed = f" failed: {event.error}: {event.message}" if event.error else ""
    return [f"  tool {event.tool}, {event.elapsed:.1f} s{failed}"]


def _workers(reader: RunLogReader, run_id: str) -> str:
    from ...handlers import Usage
    from ..runlog.events import WorkerCall

    calls = failed = cached = 0
    usage = Usage()
    for event in reader.worker():
        if isinstance(event, WorkerCall) and event.run_id == run_id:
            calls += 1
            failed += event.error is not None
            cached += event.cached
            usage += event.usage
    counts = f"{failed:,} failed, {cached:,} from the cache"
    tokens = f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"
    return f"\nworker: {counted(calls, 'call')}, {counts}, {tokens} (worker.jsonl)"


def _end(event: RunEnd, most: int | None) -> list[str]:
    seconds = "" if event.elapsed is None else f" after {event.elapsed:.1f} s"
    lines = [f"ended: {event.stop_reason or 'failed'}{seconds}{_dollars(event.cost_usd)}"]
    lines += [why for why in (event.error, event.failure) if why]
    if event.answer is None:
        return [*lines, "no answer"]
    return [*lines, "answer:", *_text(event.answer, most)]


def _call(event: ModelCall) -> str:
    usage = event.usage
    where = "from the cache" if event.cached else f"{event.elapsed:.1f} s"
    tokens = f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out"
    return f"{event.model}, {tokens}, {where}{_dollars(event.cost_usd)}"


def _dollars(cost: float | None) -> str:
    return "" if not cost else f", ${cost:,.4f}"


def _text(text: str, most: int | None, margin: str = "  ") -> list[str]:
    lines = text.splitlines()
    if most is not None:
        lines = [each if len(each) <= _COLUMNS else f"{each[:_COLUMNS]} …" for each in lines]
    more = (
        [] if most is None or len(lines) <= most else [f"{margin}… {counted(len(lines) - most, 'more line')}"]
    )
    return [*(f"{margin}{line}" for line in lines[:most]), *more]
