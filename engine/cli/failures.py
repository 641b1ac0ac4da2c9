"""Say what failed in a run, in red on a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ...sandbox_image.text import counted, printable
from ..terminal import wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..result import FailedCall, RunResult

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"

_WORDS: dict[FailedCall, str] = {
    "no_access": "no access",
    "unreachable": "no connection",
    "rate_limit": "rate limit",
    "timeout": "timeout",
    "unavailable": "endpoint failed",
    "rejected": "request rejected",
    "refusal": "model refused",
    "cut_off": "cut off at max_tokens, with no text",
    "too_long": "prompt too long",
    "budget_exceeded": "budget used up",
    "handler_error": "error in the handler",
}


def kinds_in_words(failed_calls: Mapping[FailedCall, int]) -> str:
    """Return how calls failed, the most frequent kind first."""
    most_first = sorted(failed_calls.items(), key=lambda item: -item[1])
    return ", ".join(f"{_WORDS[kind]} ({count:,})" for kind, count in most_first)


def failures(result: RunResult) -> list[str]:
    """Return a line for each thing that failed in a run which has a result."""
    lines: list[str] = []
    is_dead = result.stop_reason == "worker_failed" and len(result.failed_calls) == 1
    # A dead worker is one line: its failure says how many calls, and why.
    if result.failed_calls and not is_dead:
        why = kinds_in_words(result.failed_calls)
        failed = sum(result.failed_calls.values())
        lines.append(f"{failed:,} of {counted(result.worker_calls, 'worker call')} failed: {why}")
    if result.failure is not None:
        guess = "" if result.answer is None else ". The answer above may be a guess"
        remedy = guess if result.stop_reason == "worker_failed" else ""
        lines.append(f"{printable(result.failure)}{remedy}")
    # Again at the end, where the reader looks: the exit code may come from them.
    return [*lines, *map(printable, result.warnings)]


def print_failures(result: RunResult) -> None:
    """Print them on stderr."""
    is_red = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    for line in failures(result):
        text = wrapped(f"supdist-engine: {line}")
        print(f"{_RED}{text}{_PLAIN}" if is_red else text, file=sys.stderr)
