"""The folder of an experiment: lock, settings, records, results.csv, logs. A kill loses no record."""

from __future__ import annotations

import csv
import fcntl
import io
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from ...engine.errors import LogError, TaskError
from ...engine.private_files import PrivateFolder, is_there, read_file, resolved
from ...engine.taskfile import parse_as
from ...engine.trust.seals import Seal
from ...engine.write_failures import remedy_for, sentence
from ...sandbox_image.text import ESCAPE_SURROGATES
from ..tables import spreadsheet_text
from .config import Manifest
from .records import CACHE, CONFIG, EXAMPLES, MAX_CONFIG_BYTES, RECORDS, TABLE, Record, Tokens, read_records

# Folder of the logs of attempts that did not end, or that failed and were repeated: `<id>.<number>/`.
_INTERRUPTED = "interrupted"
_LOCK = ".lock"
_MARK = ".mark"
_SEAL_PURPOSE = "experiment"
_TABLE_SECONDS = 1.0
_BLOCK = 65_536

_ROLES = ("supervisor", "worker", "judge")
_NUMBERS = ("calls", "input_tokens", "output_tokens", "cost_usd")

# Behind these, results.csv has a column `metric.<name>` for each figure of the task.
COLUMNS = (
    "index", "example", "document", "kind", "strategy", "supervisor_model", "worker_model", "judge_model",
    "query", "references", "answer", "score", "correct", "note", "steps", "stop_reason", "context_chars",
    *(f"{role}_{number}" for role in _ROLES for number in _NUMBERS),
    "seconds", "error_stage", "error_type", "error_message",
)  # fmt: skip


class ExperimentFolder:
    """The locked folder of one experiment. Its methods raise ``LogError`` if they cannot write."""

    def __init__(self, path: Path, folder: PrivateFolder) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        self._folder = folder
        self._record_lines: BinaryIO | None = None
        # The size of the file, and lines that are not in it yet.
        self._end = 0
        self._waiting: deque[bytes] = deque()
        self._next_table = 0.0

    @property
    def cache(self) -> Path:
        """The file of cached answers."""
        return resolved(self.path) / CACHE

    def logs(self, example: str) -> Path:
        """Return the folder of an example's logs."""
        return resolved(self.path) / EXAMPLES / example

    def write_manifest(self, manifest: Manifest) -> None:
        """Write config.json and its mark."""
        data = (json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n").encode()
        self._replace(CONFIG, data)
        # The mark lets `read_manifest` recognise the file as this user's.
        if mark := Seal.open(_SEAL_PURPOSE).mark(data, _working_directory()):
            self._replace(_MARK, mark.encode())

    def open_records(self) -> None:
        """Read the records, and open their file for more."""
        with _write_errors(self.path):
            self._record_lines = self._folder.append(RECORDS)
            _cut_incomplete_line(self._record_lines)
            self._end = self._record_lines.seek(0, os.SEEK_END)
            self.records = {record.example: record for record in read_records(self.path)}

    def add(self, record: Record) -> None:
        """Append the record of an example that has ended."""
        self.records[record.example] = record
        self._waiting.append(record.model_dump_json().encode() + b"\n")
        # Now, so that a kill loses no record. What a full disk refuses is written with the next one.
        with _write_errors(self.path):
            self._write_waiting()
        # The table is written whole, which takes long for many examples; `close` writes the last one.
        if time.monotonic() >= self._next_table:
            self._write_table()

    def set_aside(self, example: str) -> None:
        """Move the logs of an earlier attempt to ``interrupted``."""
        with _write_errors(self.path), suppress(FileNotFoundError), self._folder.below(EXAMPLES) as examples:
            if not examples.exists(example):
                return
            # They are kept, since they say what was paid for.
            with self._folder.below(_INTERRUPTED, create=True) as aside:
                taken = set(aside.names())
                number = next(n for n in itertools.count(1) if f"{example}.{n}" not in taken)
                examples.move(example, aside, f"{example}.{number}")

    def close(self) -> None:
        """Write results.csv, or remove a folder in which nothing was started."""
        if self._record_lines is not None:
            with self._record_lines, _write_errors(self.path):
                self._write_waiting()
            self._write_table()
        elif not is_there(self.path / CONFIG):
            with suppress(OSError):
                self._folder.remove(_LOCK)
                self.path.rmdir()

    def _write_waiting(self) -> None:
        assert self._record_lines is not None
        # Without a buffer, which would write a part of a line later.
        descriptor = self._record_lines.fileno()
        while self._waiting:
            left = memoryview(self._waiting[0])
            try:
                while left:
                    left = left[os.write(descriptor, left) :]
            except OSError:
                os.ftruncate(descriptor, self._end)
                raise
            self._end += len(self._waiting.popleft())

    def _write_table(self) -> None:
        rows = sorted(self.records.values(), key=lambda record: record.index)
        self._replace(TABLE, results_csv(rows).encode("utf-8", ESCAPE_SURROGATES))
        self._next_table = time.monotonic() + _TABLE_SECONDS

    def _replace(self, name: str, data: bytes) -> None:
        with _write_errors(self.path), self._folder.replacing(name) as file:
            file.write(data)


@contextmanager
def open_folder(path: Path) -> Generator[ExperimentFolder]:
    """Create the folder if it is missing, and lock it.

    Raises:
        TaskError: another process has the lock.
        LogError: the folder cannot be written.
    """
    with _write_errors(path):
        folder = PrivateFolder.open(path, create=True)
    with folder:
        with _write_errors(path):
            lock = folder.update(_LOCK)
        try:
            # The kernel releases the lock however this process ends.
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TaskError(
                    f"{path}: another process is running this experiment; wait until it ends, or stop it"
                ) from None
            experiment = ExperimentFolder(path, folder)
            try:
                yield experiment
            finally:
                experiment.close()
        finally:
            os.close(lock)


def new_folder(task: str) -> Path:
    """Create and return ``logs/TASK/TIME``."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    for suffix in itertools.chain([""], (f"-{number}" for number in itertools.count(2))):
        folder = Path("logs", task, name + suffix)
        try:
            with PrivateFolder.open(folder.parent, create=True):
                folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError:
            pass  # open_folder fails as well, and names the reason
        return folder
    raise AssertionError


def read_manifest(path: Path) -> tuple[Manifest | None, bool]:
    """Return the manifest, None if there is none; and whether this user's ``eval`` wrote it.

    Raises:
        TaskError: config.json is unreadable or wrong.
    """
    file = resolved(path) / CONFIG
    if not is_there(file):
        return None, False
    try:
        data = read_file(file, MAX_CONFIG_BYTES)
        manifest = parse_as(Manifest, data.decode(), file, "experiment's config")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read the experiment's config file {file}: {error}") from error
    try:
        mark = read_file(resolved(path) / _MARK, MAX_CONFIG_BYTES)
    except OSError:
        mark = b""
    return manifest, Seal.open(_SEAL_PURPOSE).is_own(mark, data, _working_directory())


def results_csv(records: Sequence[Record]) -> str:
    """Return the records as results.csv, in their order."""
    metrics = sorted({name for record in records for name in record.metrics})
    # The line ends of RFC 4180, which the csv module writes, must not be translated.
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*COLUMNS, *(f"metric.{name}" for name in metrics)])
    for record in records:
        writer.writerow([_csv_value(value) for value in _row(record, metrics)])
    return text.getvalue()


def _row(record: Record, metrics: Iterable[str]) -> Iterable[object]:
    error = record.error
    values: dict[str, object] = {
        **dict(record),
        "references": json.dumps(record.references, ensure_ascii=False),
        "seconds": round(record.seconds, 3),
        "error_stage": error and error.stage,
        "error_type": error and error.type,
        "error_message": error and error.message,
    }
    for role in _ROLES:
        values |= _token_values(role, getattr(record, role))
    return [*(values[column] for column in COLUMNS), *(record.metrics.get(name) for name in metrics)]


def _token_values(role: str, tokens: Tokens) -> dict[str, object]:
    numbers = (tokens.calls, tokens.input, tokens.output, tokens.cost_usd)
    return {f"{role}_{name}": number for name, number in zip(_NUMBERS, numbers, strict=True)}


def _csv_value(value: object) -> object:
    match value:
        case None:
            return ""
        case bool():
            return int(value)
        case float():
            return f"{value:.9g}"
        case str():
            return spreadsheet_text(value)
        case _:
            return value


def _working_directory() -> bytes:
    # Part of the mark: relative paths in the settings name other files elsewhere.
    try:
        return os.fsencode(os.path.realpath(os.curdir))
    except FileNotFoundError:
        # It was removed. Then a relative path names nothing.
        return b""


def _cut_incomplete_line(file: BinaryIO) -> None:
    # A last line without a line end was being written as the process died.
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            file.truncate(start + place + 1)
            return
        end = start
    file.truncate(0)


@contextmanager
def _write_errors(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        advice = sentence(remedy_for(error, "choose another folder"))
        raise LogError(
            f"cannot write {error.filename or path}: {error.strerror or error}. {advice}"
        ) from error
