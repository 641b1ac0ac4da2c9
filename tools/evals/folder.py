"""The folder of an experiment, while it is written: by one process at a time, so that a kill loses nothing that ended."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ...engine.errors import LogError, TaskError
from ...engine.private_files import PrivateFolder, is_there, open_file, read_file, resolved
from ...engine.taskfile import parse_as
from ...engine.trust.seals import Seal
from ...sandbox_image.text import ESCAPE_SURROGATES
from .config import Manifest
from .records import CACHE, CONFIG, EXAMPLES, RECORDS, TABLE, Record, read_records
from .table import table

INTERRUPTED = "interrupted"
"""Logs of attempts that did not end, or failed and were made again: ``interrupted/<id>.<number>/``."""

_LOCK = ".lock"
_MARK = ".mark"
_PURPOSE = "experiment"
_TABLE_SECONDS = 1.0


class Folder:
    """Open within ``with``; that takes the lock, which ends with the process however it ends.

    Raises:
        TaskError: by entering: another process writes it.
        LogError: by every method: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        self._open: PrivateFolder | None = None
        self._lines: BinaryIO | None = None
        self._lock: int | None = None
        self._table_due = 0.0

    def __enter__(self) -> Folder:
        with _writing(self.path):
            self._open = PrivateFolder.open(self.path, create=True)
            try:
                self._lock = self._open.update(_LOCK)
            except BaseException:
                self._open.close()
                raise
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._open.close()
            raise TaskError(
                f"{self.path}: another process is running this experiment; wait, or end it"
            ) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._lines is not None:
                self._lines.close()
                self.write_table()
            elif not is_there(self.path / CONFIG):
                self._leave_nothing()
        finally:
            assert self._lock is not None
            os.close(self._lock)
            self._place.close()

    @property
    def _place(self) -> PrivateFolder:
        assert self._open is not None, "use it within `with`"
        return self._open

    @property
    def cache(self) -> Path:
        """The file for answers."""
        return resolved(self.path) / CACHE

    def logs(self, example: str) -> Path:
        """Where an example's logs are."""
        return resolved(self.path) / EXAMPLES / example

    def manifest(self) -> Manifest | None:
        """What is being run here; None where nothing was begun.

        Raises:
            TaskError: config.json is not ours.
        """
        return self.manifest_and_owner()[0]

    def manifest_and_owner(self) -> tuple[Manifest | None, bool]:
        """Return what is being run here, and whether this user's ``eval`` wrote config.json as it is.

        Raises:
            TaskError: config.json is not ours.
        """
        path = resolved(self.path) / CONFIG
        if not is_there(path):
            return None, False
        try:
            data = read_file(path)
            manifest = parse_as(Manifest, data.decode(), path, "experiment's config")
        except (OSError, UnicodeDecodeError) as error:
            raise TaskError(f"cannot read the experiment's config file {path}: {error}") from error
        return manifest, Seal.open(_PURPOSE).is_own(self._mark(), data, _here())

    def _mark(self) -> bytes:
        try:
            return read_file(resolved(self.path) / _MARK)
        except OSError:
            return b""

    def begin(self, manifest: Manifest) -> None:
        """Write config.json, and the mark by which it is known again."""
        text = json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n"
        self._replace(CONFIG, text.encode())
        if mark := Seal.open(_PURPOSE).mark(text.encode(), _here()):
            self._replace(_MARK, mark.encode())

    def open_records(self) -> None:
        """Read what has ended, and make ready for more: a last line that was cut off is cut away."""
        with _writing(self.path):
            self._lines = self._place.append(RECORDS)
            _cut_after_last_line(self._lines)
            self.records = {record.example: record for record in read_records(self.path)}

    def add(self, record: Record) -> None:
        """An example has ended. The table follows within the second in which the next one ends, or at the end."""
        assert self._lines is not None
        with _writing(self.path):
            self._lines.write(record.model_dump_json().encode() + b"\n")
            self._lines.flush()
        self.records[record.example] = record
        if time.monotonic() >= self._table_due:
            self.write_table()

    def write_table(self) -> None:
        """Write results.csv whole."""
        rows = sorted(self.records.values(), key=lambda record: record.index)
        self._replace(TABLE, table(rows).encode("utf-8", ESCAPE_SURROGATES))
        self._table_due = time.monotonic() + _TABLE_SECONDS

    def set_aside(self, example: str) -> None:
        """Move the logs of an attempt that did not end out of the way; they tell what was paid for."""
        with _writing(self.path), suppress(FileNotFoundError), self._place.below(EXAMPLES) as examples:
            if not examples.exists(example):
                return
            with self._place.below(INTERRUPTED, create=True) as aside:
                taken = set(aside.names())
                number = next(n for n in itertools.count(1) if f"{example}.{n}" not in taken)
                examples.move(example, aside, f"{example}.{number}")

    def _leave_nothing(self) -> None:
        """Nothing was begun."""
        with suppress(OSError):
            self._place.remove(_LOCK)
            self.path.rmdir()

    def _replace(self, name: str, data: bytes) -> None:
        with _writing(self.path), self._place.replacing(name) as file:
            file.write(data)


def _here() -> bytes:
    """The working directory, from which the paths of the settings count: elsewhere they are other files."""
    return os.fsencode(os.path.realpath(os.curdir))


def _cut_after_last_line(file: BinaryIO) -> None:
    """Without its end of line, a line was being written when the process died."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65_536)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            file.truncate(start + place + 1)
            return
        end = start
    file.truncate(0)


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise LogError(
            f"cannot write {error.filename or path}: {error.strerror or error}. Make room, or choose another folder"
        ) from error


def log_events(folder: Path, stream: str) -> Generator[dict[str, Any]]:
    """The events of a log, as far as they can be read."""
    try:
        lines = open_file(folder / f"{stream}.jsonl")
    except OSError:
        return
    with lines:
        for line in lines:
            try:
                event: object = json.loads(line.decode("ascii", "replace"))
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event  # pyright: ignore[reportUnknownVariableType]
