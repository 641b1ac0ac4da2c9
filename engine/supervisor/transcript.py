"""Formats the output of blocks for the supervisor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from ...sandbox_image.terminal_text import terminal_text
from ...sandbox_image.text import excerpt, left_out
from ..sandbox import CellResult, Outcome
from ..sandbox.cell_details import reason_of
from ..slices import Steps, join, strip_end

_Read: TypeAlias = Callable[[str], Steps[str]]

# A shorter time is not shown: a repeated run then has the same messages, and the cache has the replies.
_MIN_SECONDS = 10.0

_SECONDS = re.compile(r"^((?:The block|Block \d+ of \d+) [^\n(]*) \(\d+ s\)", re.MULTILINE)


def show_results(
    results: Sequence[CellResult], blocks: int, output_limit: int, read: _Read | None = None
) -> Steps[str]:
    """Return the outputs of a turn, in steps.

    Args:
        output_limit: in characters per block.
        read: turns output into text; by default as a terminal does.
    """
    read = read or _on_terminal
    parts: list[str] = []
    for number, result in enumerate(results, 1):
        part = yield from _show(number, blocks, result, output_limit, read)
        parts.append(part)
    if len(results) < blocks:
        skipped = blocks - len(results)
        parts.append(f"[{skipped} further block{'s' if skipped > 1 else ''} not executed]")
    return "\n\n".join(parts)


def without_seconds(shown: str) -> str:
    """Return the outputs without the seconds of long blocks, which differ from run to run."""
    return _SECONDS.sub(r"\1", shown)


def _on_terminal(text: str) -> Steps[str]:
    return terminal_text(text, join)


def _show(number: int, blocks: int, result: CellResult, limit: int, read: _Read) -> Steps[str]:
    name = f"Block {number} of {blocks}" if blocks > 1 else "The block"
    parts = [f"{name} {_verdict(result)}"]
    output = yield from _output(result, read)
    if output:
        parts.append(f"Output:\n{_excerpt(output, limit)}")
    elif result.outcome is Outcome.OK and result.final is None:
        parts.append("It showed nothing; print what you want to see.")
    if result.truncated:
        parts.append("[the output went over the sandbox's limit; what came after it is lost]")
    if result.error is not None:
        # A small limit on output must not cut a traceback to nothing.
        traceback = yield from read(result.error.traceback)
        parts.append(excerpt(traceback.rstrip(), max(limit, 400)))
    return "\n".join(parts)


def _output(result: CellResult, read: _Read) -> Steps[list[_Part]]:
    # A progress bar of 10,000 updates is one line, and leaves room for what else was printed.
    parts = [_Part.stripped((yield from read(result.stdout)))]
    for each in result.display:
        text = yield from read(each.as_text())
        parts.append(_Part(text, len(text)))
    stderr = _Part.stripped((yield from read(result.stderr)))
    if stderr.size:
        parts += [_Part("[stderr]", 8), stderr]
    return [part for part in parts if part.size]


class _Part(NamedTuple):
    """The first ``size`` characters of a text, which may be long: it is not copied."""

    text: str
    size: int

    @classmethod
    def stripped(cls, text: str) -> _Part:
        return cls(text, strip_end(text, "\n"))


def _excerpt(parts: Sequence[_Part], limit: int) -> str:
    """Return ``excerpt`` of the parts, each on a line of its own."""
    size = sum(part.size for part in parts) + len(parts) - 1
    if size <= limit:
        return "\n".join(part.text[: part.size] for part in parts)
    half = (limit + 1) // 2
    head = "\n".join(_first(parts, half))
    tail = "\n".join(_last(parts, half))
    return f"{head[:half]}{left_out(size - limit)}{tail[len(tail) - (limit - half) :]}"


def _first(parts: Sequence[_Part], most: int) -> Iterator[str]:
    for text, size in parts:
        # At 0 there is still the end of the line before.
        if most < 0:
            return
        yield text[: min(size, most)]
        most -= size + 1


def _last(parts: Sequence[_Part], most: int) -> list[str]:
    texts: list[str] = []
    for text, size in reversed(parts):
        if most < 0:
            break
        texts.insert(0, text[max(0, size - most) : size])
        most -= size + 1
    return texts


def _seconds(result: CellResult) -> str:
    own = result.elapsed - result.worker_wait
    return f" ({own:.0f} s)" if own >= _MIN_SECONDS else ""


def _verdict(result: CellResult) -> str:
    seconds = _seconds(result)
    match result.outcome:
        case Outcome.OK:
            return f"ran{seconds}."
        case Outcome.USER_ERROR:
            return f"raised an exception{seconds}; the variables that were set before it are kept."
        case Outcome.TIMEOUT if not result.state_lost:
            return f"was interrupted: it took too long{seconds}; the variables are kept."
        case Outcome.OUTPUT_LIMIT if not result.state_lost:
            return f"was interrupted: it printed too much{seconds}; the variables are kept."
        case _:
            return f"ended the interpreter ({result.outcome.value}: {reason_of(result)})."
