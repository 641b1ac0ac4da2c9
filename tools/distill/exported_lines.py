"""Reads an export back. Every failure is a ``TaskError``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec

from ...engine.errors import TaskError
from ...engine.private_files import open_file, read_line
from ...handlers import Message
from .export import SOURCES
from .formats import sha256_of
from .split import SIDES


class Source(msgspec.Struct, frozen=True):
    """A row of ``sources.jsonl``."""

    split: str
    line: int
    sha256: str
    run: str
    run_id: str
    left_out: list[int]


class _Line(msgspec.Struct, frozen=True):
    messages: list[Message]


def find_files(path: Path) -> list[Path]:
    """Return the files of an export, or the one file."""
    files = [path / f"{side}.jsonl" for side in SIDES] if path.is_dir() else [path]
    # A data set of one document has only one side.
    files = [file for file in files if file.is_file()]
    if not files:
        raise TaskError(f"{path} holds no exported conversations; name what `supdist-engine export` wrote")
    return files


def read_lines(file: Path) -> Iterator[list[Message]]:
    """Yield the messages of each line."""
    try:
        opened = open_file(file)
    except OSError as error:
        raise TaskError(f"cannot read {file}: {error.strerror}") from error
    with opened as lines:
        for number in itertools.count(1):
            try:
                if not (line := read_line(lines)):
                    return
                yield msgspec.json.decode(line, type=_Line).messages
            except OSError as error:
                raise TaskError(f"{file}, line {number}: {error.strerror}") from error
            except (ValueError, RecursionError) as error:
                raise TaskError(
                    f"{file}, line {number}: {error}. Only --format sft --per run can be replayed"
                ) from None


class SourceTable:
    """Finds the source of each line of a file."""

    def __init__(self, file: Path) -> None:
        path = file.parent / SOURCES
        if not path.is_file():
            raise TaskError(f"{path} is missing: it names the run log of each line. Export again")
        try:
            with open_file(path) as lines:
                rows = [
                    msgspec.json.decode(line, type=Source) for line in iter(partial(read_line, lines), b"")
                ]
        except (OSError, ValueError, RecursionError):
            raise TaskError(
                f"{path} lists no conversations of supervisors; only an export of these can be replayed"
            ) from None
        self._by_hash = {row.sha256: row for row in rows}
        self._by_line = {row.line: row for row in rows if row.split == file.stem}

    def find(self, number: int, messages: Sequence[Message]) -> tuple[Source | None, bool]:
        """Return a line's source, and whether the line has changed."""
        # By content, because lines may have been shuffled; a changed line is found by its place.
        found = self._by_hash.get(sha256_of({"messages": messages}))
        return (found, False) if found else (self._by_line.get(number), True)
