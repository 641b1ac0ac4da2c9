"""The folder of an experiment, while it is written: by one process at a time, so that a kill loses nothing that ended."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ...engine.errors import LogError, TaskError
from ...engine.taskfile import read_as
from .config import Manifest
from .records import CACHE, CONFIG, EXAMPLES, RECORDS, TABLE, Record, read_records
from .table import table

INTERRUPTED = "interrupted"
"""Logs of attempts that did not end, or failed and were made again: ``interrupted/<id>.<number>/``."""

_LOCK = ".lock"
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
        self._lines: TextIO | None = None
        self._lock: int | None = None
        self._table_due = 0.0

    def __enter__(self) -> Folder:
        with _writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
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
            elif not (self.path / CONFIG).exists():
                self._leave_nothing()
        finally:
            assert self._lock is not None
            os.close(self._lock)

    @property
    def cache(self) -> Path:
        """The file for answers."""
        return self.path / CACHE

    def logs(self, example: str) -> Path:
        """Where an example's logs are."""
        return self.path / EXAMPLES / example

    def manifest(self) -> Manifest | None:
        """What is being run here; None where nothing was begun.

        Raises:
            TaskError: config.json is not ours.
        """
        path = self.path / CONFIG
        return read_as(Manifest, path, "experiment's config") if path.exists() else None

    def begin(self, manifest: Manifest) -> None:
        """Write config.json."""
        text = json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n"
        self._replace(CONFIG, text)

    def open_records(self) -> None:
        """Read what has ended, and make ready for more: a last line that was cut off is cut away."""
        with _writing(self.path):
            path = self.path / RECORDS
            if path.exists():
                _cut_after_last_line(path)
            self.records = {record.example: record for record in read_records(self.path)}
            self._lines = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by __exit__

    def add(self, record: Record) -> None:
        """An example has ended. The table follows within the second in which the next one ends, or at the end."""
        assert self._lines is not None
        with _writing(self.path):
            self._lines.write(record.model_dump_json() + "\n")
            self._lines.flush()
        self.records[record.example] = record
        if time.monotonic() >= self._table_due:
            self.write_table()

    def write_table(self) -> None:
        """Write results.csv whole."""
        rows = sorted(self.records.values(), key=lambda record: record.index)
        self._replace(TABLE, table(rows))
        self._table_due = time.monotonic() + _TABLE_SECONDS

    def set_aside(self, example: str) -> None:
        """Move the logs of an attempt that did not end out of the way; they tell what was paid for."""
        logs = self.logs(example)
        if not logs.exists():
            return
        with _writing(self.path):
            place = self.path / INTERRUPTED
            place.mkdir(exist_ok=True)
            number = sum(1 for _ in place.glob(f"{example}.*")) + 1
            while (target := place / f"{example}.{number}").exists():
                number += 1
            logs.rename(target)

    def _leave_nothing(self) -> None:
        """Nothing was begun."""
        with suppress(OSError):
            (self.path / _LOCK).unlink()
            self.path.rmdir()

    def _replace(self, name: str, text: str) -> None:
        with _writing(self.path):
            part = self.path / f".{name}.part"
            with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                file.write(text)
            part.replace(self.path / name)


def _cut_after_last_line(path: Path) -> None:
    """Without its end of line, a line was being written when the process died."""
    with open(path, "r+b") as file:
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
            f"cannot write {path}: {error.strerror or error}. Make room, or choose another folder"
        ) from error


def log_events(folder: Path, stream: str) -> Generator[dict[str, Any]]:
    """The events of a log, as far as they can be read."""
    path = folder / f"{stream}.jsonl"
    if not path.exists():
        return
    with open(path, encoding="ascii", errors="replace") as lines:
        for line in lines:
            try:
                event: object = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event  # pyright: ignore[reportUnknownVariableType]
