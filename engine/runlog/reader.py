"""Reads run logs, a line at a time. Their content is hostile."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast, get_args

import msgspec

from ...sandbox_image.text import one_line
from ..errors import LogFormatError
from ..private_files import MAX_LINE_BYTES, open_file, read_line
from .blobs import MAX_BLOB_BYTES, read_blob
from .events import SCHEMA_VERSION, Event, ReplEvent, Stream, SupervisorEvent, WorkerEvent

E = TypeVar("E", bound=Event)

_MAX_PROBLEMS = 20
_MAX_NAME = 40

# Names of fields in schema 1.
_OLD_NAMES = {"arm": "strategy"}


class RunLogReader:
    """Reads the events of one run, or of all runs, in a folder. ``whole`` adds the long values of one.

    Raises:
        LogFormatError: while events are read; it names file and line.
    """

    def __init__(self, folder: Path, run_id: str | None = None) -> None:
        self._folder = folder
        self._run_id = run_id
        # Skipped lines that are no events: how many, and the first of them by file and number.
        self.skipped = 0
        self.problems: list[str] = []
        # Skipped events of types that this version does not know.
        self.unknown: Counter[str] = Counter()

    @property
    def folder(self) -> Path:
        """The folder of the log."""
        return self._folder

    def notes(self) -> list[str]:
        """Return problems and unknown event types, a line each."""
        more = self.skipped - len(self.problems)
        return [
            *self.problems,
            *([f"{self._folder}: {more} more lines are no JSON objects"] if more else []),
            *(f"{self._folder}: skipped {count} events of the unknown type {name!r}"
              for name, count in self.unknown.items()),
        ]  # fmt: skip

    def supervisor(self) -> Iterator[SupervisorEvent]:
        """Yield the events of ``supervisor.jsonl``."""
        return self._events("supervisor", SupervisorEvent)

    def worker(self) -> Iterator[WorkerEvent]:
        """Yield the events of ``worker.jsonl``."""
        return self._events("worker", WorkerEvent)

    def repl(self) -> Iterator[ReplEvent]:
        """Yield the events of ``repl.jsonl``."""
        return self._events("repl", ReplEvent)

    def whole(self, event: E) -> E:
        """Return an event with the values that were cut out of it.

        Raises:
            LogFormatError: one of them was not kept, is missing, or is another.
        """
        if not event.cut:
            return event
        if sum(each.bytes for each in event.cut) > MAX_BLOB_BYTES:
            raise LogFormatError(
                f"{self._folder}: the values of an event have more than {MAX_BLOB_BYTES >> 20} MiB"
            )
        fields = msgspec.to_builtins(event)
        for each in event.cut:
            value = read_blob(self._folder, each)
            try:
                _put(fields, each.path, value)
            except (LookupError, TypeError, ValueError) as error:
                raise LogFormatError(f"{self._folder}: a cut names no field of its event") from error
        del fields["cut"]
        try:
            return msgspec.convert(fields, type(event))
        except (msgspec.ValidationError, RecursionError) as error:
            raise LogFormatError(f"{self._folder}: {error}") from error

    def _events(self, stream: Stream, union: Any) -> Iterator[Any]:
        kinds: dict[str, type[Event]] = {kind.__struct_config__.tag: kind for kind in get_args(union)}
        path = self._folder / f"{stream}.jsonl"
        try:
            file = open_file(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise LogFormatError(f"{path}: {error.strerror or error}") from error
        with file:
            for place, fields in self._lines(file, path):
                if self._run_id is not None and fields.get("run_id") != self._run_id:
                    continue
                kind = kinds.get(str(fields.get("event")))
                if kind is None:
                    self._count_unknown(str(fields.get("event")))
                    continue
                _check_version(fields, place)
                for old, new in _OLD_NAMES.items():
                    if old in fields:
                        fields.setdefault(new, fields[old])
                try:
                    yield msgspec.convert(fields, kind)
                except (msgspec.ValidationError, RecursionError) as error:
                    raise LogFormatError(f"{place}: {error}") from error

    def _count_unknown(self, name: str) -> None:
        # A hostile log may have another type on each line.
        is_counted = name[:_MAX_NAME] in self.unknown or len(self.unknown) < _MAX_PROBLEMS
        self.unknown[name[:_MAX_NAME] if is_counted else "other"] += 1

    def _lines(self, file: BinaryIO, path: Path) -> Iterator[tuple[str, dict[str, object]]]:
        number = 0
        while True:
            number += 1
            place = f"{path}, line {number}"
            try:
                line = read_line(file, MAX_LINE_BYTES)
            except OSError as error:
                raise LogFormatError(f"{place}: {error.strerror}") from error
            if not line:
                return
            # An editor may have put a byte order mark before the first line.
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")
            # Older versions wrote lines of 256 MiB: one copy less in memory.
            del line
            try:
                value: object = json.loads(text)
            except (ValueError, RecursionError):
                value = None
            del text
            if isinstance(value, dict):
                yield place, cast("dict[str, object]", value)
            else:
                self.skipped += 1
                if len(self.problems) < _MAX_PROBLEMS:
                    self.problems.append(f"{place}: no JSON object; a killed run leaves such a line")


def _put(fields: Any, path: list[str | int], value: object) -> None:
    *above, last = path
    for step in above:
        fields = fields[step]
    fields[last]  # raises LookupError if there is nothing
    fields[last] = value


def _check_version(fields: dict[str, object], place: str) -> None:
    found = fields.get("schema_version")
    if isinstance(found, int) and found > SCHEMA_VERSION:
        engine = one_line(str(fields.get("engine_version"))[:_MAX_NAME])
        raise LogFormatError(
            f"{place}: supdist-engine {engine} wrote this log with schema {found}. This version reads up to "
            f"{SCHEMA_VERSION}; install a newer supdist-engine"
        )
