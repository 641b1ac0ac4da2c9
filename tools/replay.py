"""Executes the code of exported conversations again, and compares what it shows: ``replay FILE|DIR``.

    python -m supdist.tools.replay distillation

Exit codes: 0 all that was replayed is equal, 1 something differs, or a line is not as it was exported, 2 wrong argument, or nothing could be replayed, 4 no
sandbox to be had.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import itertools
import sys
from pathlib import Path
from typing import Literal

from ..engine.cli.terminal import printable
from ..engine.errors import SandboxError, TaskError
from .distill.replay import LineReport, TurnReport, replay

EQUAL, DIFFERENT, USAGE, NO_SANDBOX = 0, 1, 2, 4

_DIFF_LINES = 40
_DIFF_CHARS = 200


def main() -> None:
    """Replay, print a row a line of the export, and exit."""
    parser = argparse.ArgumentParser(
        description="Executes the code of exported conversations again, and compares."
    )
    parser.add_argument("path", type=Path, help="the folder of an sft export, or its train.jsonl")
    parser.add_argument("-n", type=int, help="so many lines of each file at most")
    parser.add_argument(
        "--best-effort", action="store_true", help="in sandboxes without a filter of system calls, too"
    )
    options = parser.parse_args()
    isolation: Literal["strict", "best_effort"] = "best_effort" if options.best_effort else "strict"
    try:
        sys.exit(asyncio.run(_replay(options.path, options.n, isolation)))
    except TaskError as error:
        _fail(USAGE, error)
    except SandboxError as error:
        _fail(NO_SANDBOX, error)


def _fail(code: int, error: Exception) -> None:
    print(f"replay: {printable(str(error))}", file=sys.stderr)
    sys.exit(code)


async def _replay(path: Path, most: int | None, isolation: Literal["strict", "best_effort"]) -> int:
    reports: list[LineReport] = []
    async for report in replay(path, most, isolation):
        reports.append(report)
        _show(report)
    verdicts = ("equal", "different", "unknown")
    counts = {verdict: sum(report.count(verdict) for report in reports) for verdict in verdicts}
    skipped = sum(bool(report.skipped) for report in reports)
    print(
        f"{len(reports) - skipped} lines replayed, {skipped} not; turns: "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    )
    if counts["different"] or any(report.is_changed for report in reports):
        return DIFFERENT
    return EQUAL if counts["equal"] else USAGE


def _show(report: LineReport) -> None:
    place = f"{report.file}:{report.line}"
    if report.is_changed:
        print(f"{place}: this line is not as it was exported")
    if report.skipped:
        print(f"{place}: not replayed: {printable(report.skipped)}", flush=True)
        return
    marks = " ".join(turn.verdict for turn in report.turns)
    print(f"{place}: {marks}", flush=True)
    for turn in report.turns:
        if turn.verdict == "unknown":
            print(f"  turn {turn.turn}: {turn.why}")
        elif turn.verdict == "different":
            print(f"  turn {turn.turn}, as exported and as replayed:\n{_difference(turn)}", flush=True)


def _difference(turn: TurnReport) -> str:
    lines = difflib.unified_diff(
        turn.exported.split("\n"), turn.replayed.split("\n"), "exported", "replayed", lineterm=""
    )
    return "\n".join(f"    {printable(line)[:_DIFF_CHARS]}" for line in itertools.islice(lines, _DIFF_LINES))


if __name__ == "__main__":
    main()
