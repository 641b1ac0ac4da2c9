"""Executes the code of an export again: ``python -m supdist.tools.replay FILE|DIR``.

Exit codes: 0 equal, 1 something differs or was changed, 2 wrong argument or no line, 4 no sandbox.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import itertools
import sys
from pathlib import Path

from ..engine import SandboxConfig
from ..engine.cli.options import sandbox_config
from ..engine.cli.permissions import Allowed
from ..engine.errors import SandboxError, TaskError
from ..engine.trust import Environment, Permissions
from ..sandbox_image.text import one_line, printable, shorten
from .distill.export import SOURCES, is_own
from .distill.replay import LineReport, TurnReport, replay

EQUAL, DIFFERENT, USAGE, NO_SANDBOX = 0, 1, 2, 4

_SANDBOX_OPTIONS = {
    "memory": str, "timeout": float, "wall": float, "pids": int, "scratch": str, "packages": str,
    "backend": str, "image": str, "runtime": str,
}  # fmt: skip

_DIFF_LINES = 40
_DIFF_CHARS = 200
_MESSAGE_CHARS = 1000


def main() -> None:
    """Replay, print a row for each line, and exit."""
    parser = argparse.ArgumentParser(
        description="Executes the code of exported conversations again, and compares what it shows. "
        "The limits of the sandbox come from the options here, not from the log."
    )
    parser.add_argument("path", type=Path, help="the folder of an sft export, or its train.jsonl")
    parser.add_argument("-n", type=int, help="lines of each file, at most")
    parser.add_argument(
        "--best-effort", action="store_true", help="also in sandboxes without a filter of system calls"
    )
    for name, kind in _SANDBOX_OPTIONS.items():
        field = SandboxConfig.model_fields[name]
        parser.add_argument(
            f"--{name}", type=kind, metavar="X", help=f"{field.description} (default: {field.default})"
        )
    parser.add_argument(
        "--allow-read",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a folder with run logs of the export",
    )
    options = parser.parse_args()
    given = {name: value for name in _SANDBOX_OPTIONS if (value := getattr(options, name)) is not None}
    if options.best_effort:
        given["isolation"] = "best_effort"
    try:
        permissions = _permissions(options.path, tuple(options.allow_read))
        sys.exit(asyncio.run(_replay(options.path, options.n, sandbox_config(**given), permissions)))
    except TaskError as error:
        _fail(USAGE, error)
    except SandboxError as error:
        _fail(NO_SANDBOX, error)


def _permissions(path: Path, read: tuple[Path, ...]) -> Permissions:
    # An export of this user may name any log. Another one may name only what lies in its folder.
    folder = path if path.is_dir() else path.parent
    allowed = Allowed(read=read)
    return allowed.bind(folder / SOURCES, Environment({}), is_own=is_own(folder))


def _fail(code: int, error: Exception) -> None:
    print(f"replay: {_quoted(str(error))}", file=sys.stderr)
    sys.exit(code)


async def _replay(path: Path, most: int | None, sandbox: SandboxConfig, permissions: Permissions) -> int:
    reports: list[LineReport] = []
    printed = set[str]()
    async for report in replay(path, most, sandbox=sandbox, permissions=permissions):
        reports.append(report)
        _print_settings(report, printed)
        _print_report(report)
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


def _print_settings(report: LineReport, printed: set[str]) -> None:
    for name, value in report.other_settings.items():
        text = shorten(one_line(f"{name} {value}"), _DIFF_CHARS)
        # Once: the lines of an export mostly have the same settings.
        if text not in printed:
            printed.add(text)
            print(f"the run's sandbox had {text}; --help lists the options", file=sys.stderr)


def _print_report(report: LineReport) -> None:
    place = f"{report.file}:{report.line}"
    if report.is_changed:
        print(f"{place}: this line was changed after the export")
    if report.skipped:
        print(f"{place}: not replayed: {_quoted(report.skipped)}", flush=True)
        return
    marks = " ".join(turn.verdict for turn in report.turns)
    print(f"{place}: {marks}", flush=True)
    for turn in report.turns:
        if turn.verdict == "unknown":
            print(f"  turn {turn.turn}: {turn.why}")
        elif turn.verdict == "different":
            print(f"  turn {turn.turn}, as exported and as replayed:\n{_difference(turn)}", flush=True)


def _quoted(text: str) -> str:
    # A line end in a hostile log would forge a verdict.
    return one_line(shorten(text, _MESSAGE_CHARS))


def _difference(turn: TurnReport) -> str:
    lines = difflib.unified_diff(
        turn.exported.split("\n"), turn.replayed.split("\n"), "exported", "replayed", lineterm=""
    )
    return "\n".join(
        f"    {shorten(printable(line), _DIFF_CHARS)}" for line in itertools.islice(lines, _DIFF_LINES)
    )


if __name__ == "__main__":
    main()
