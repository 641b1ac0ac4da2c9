"""The files of a run log: lines are appended, long values go into blobs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, BinaryIO

from ..errors import LogError
from ..private_files import PrivateFolder, ResolvedPath
from ..slices import SLICE
from ..write_failures import remedy_for, sentence
from .blobs import LogBudget, digest, is_stored, store
from .cuts import LongValue, cut
from .encoding import as_plain, encode_line
from .events import STREAMS, Cut, Event, Stream

# None: it is written.
Written = asyncio.Task[None] | None


class OptionalLogDir(ResolvedPath):
    """A folder that nobody asked for: a run that cannot write its log there goes on without one."""


class LogFiles:
    """The files of one run.

    Args:
        log_bytes: budget for lines and blobs; None is no limit.
        on_full: called once with it, when it is used up.
        on_failure: called once if an ``OptionalLogDir`` cannot be written; nothing is written from then on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        log_bytes: int | None,
        on_full: Callable[[int], None],
        on_failure: Callable[[LogError], None],
    ) -> None:
        self._path = path
        self._on_failure = on_failure if isinstance(path, OptionalLogDir) else None
        self.has_failed = False
        self._budget = LogBudget(log_bytes)
        self._on_full = on_full
        self._has_reported = False
        self._stack = ExitStack()
        self._place: PrivateFolder | None = None
        self._lines: dict[Stream, BinaryIO] = {}
        # Streams whose last line is not complete.
        self._torn: set[Stream] = set()
        self._thread: ThreadPoolExecutor | None = None
        self._writing: set[asyncio.Task[None]] = set()
        # Of an event that nobody waits for.
        self._failed: LogError | None = None

    @property
    def folder(self) -> PrivateFolder:
        """The open folder."""
        assert self._place is not None, "it is open"
        return self._place

    def open(self) -> None:
        """Open the files, or raise ``LogError``. Without a path, open nothing."""
        if self._path is None:
            return
        try:
            self._place = self._stack.enter_context(PrivateFolder.open(self._path, create=True))
            for name in STREAMS:
                file = self._stack.enter_context(self._place.append(f"{name}.jsonl"))
                self._lines[name] = file
                if _is_cut_off(file):
                    self._torn.add(name)
        except OSError as error:
            self._stack.close()
            self.fail(log_error(self._path, error))

    def fail(self, error: LogError) -> None:
        """Raise the error; for an ``OptionalLogDir``, report the first one and write no more."""
        if self._on_failure is None:
            raise error
        self._lines.clear()
        if not self.has_failed:
            self.has_failed = True
            self._on_failure(error)

    def close(self) -> None:
        """Close the files."""
        # Nothing is left to do here, unless the event loop ended before ``drain``.
        if self._thread is not None:
            self._thread.shutdown()
        self._lines.clear()
        self._stack.close()

    async def drain(self) -> None:
        """Wait until all events are written; raise the ``LogError`` of one that nobody waits for."""
        while self._writing:
            await asyncio.wait(self._writing)
        self._raise_failed()

    def write(self, stream: Stream, event: Event, kept: Collection[str] = ()) -> Written:
        """Write an event; return a task if it has long values.

        Args:
            kept: fields that are not cut when the budget is used up.

        Raises:
            LogError: it, or an earlier one that nobody waited for, cannot be written.
        """
        try:
            return self._write(stream, event, kept)
        except LogError as error:
            self.fail(error)
            return None

    def _write(self, stream: Stream, event: Event, kept: Collection[str]) -> Written:
        if stream not in self._lines:
            return None
        self._raise_failed()
        # What the supervisor said and saw is bounded by the settings of the run, and an export needs it.
        is_tight = self._budget.is_used_up and stream != "supervisor"
        fields, found = cut(as_plain(event), tight=is_tight, kept=kept)
        if not found:
            self._append(stream, fields)
            return None
        if is_tight and sum(_length(each) for each in found) <= SLICE:
            fields["cut"] = [as_plain(self._cut(each)) for each in found]
            self._append(stream, fields)
            return None
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._append_cut(stream, fields, self._cut_all(found))
            return None
        task = loop.create_task(self._write_long(stream, fields, found))
        self._writing.add(task)
        task.add_done_callback(self._end)
        return task

    async def wait(self, written: Written) -> None:
        """Wait until an event is written; raise its ``LogError``."""
        if written is None:
            return
        try:
            # Who waits may be cancelled; the event is written all the same.
            await asyncio.shield(written)
        except LogError:
            self._failed = None
            raise

    async def _write_long(self, stream: Stream, fields: dict[str, Any], found: list[LongValue]) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="run-log")
        # One thread, so that a run holds one slice at a time. Its operations are short: the event loop gets
        # the interpreter's lock between two of them.
        try:
            cuts = await asyncio.get_running_loop().run_in_executor(self._thread, self._cut_all, found)
            if stream in self._lines:
                self._append_cut(stream, fields, cuts)
        except LogError as error:
            self.fail(error)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and isinstance(error := task.exception(), LogError):
            self._failed = error

    def _raise_failed(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _cut_all(self, found: list[LongValue]) -> list[Cut]:
        return [self._cut(each) for each in found]

    def _cut(self, long: LongValue) -> Cut:
        size, sha256 = digest(long.slices())
        try:
            # First the blob, then the event that names it: a killed run has no event without its blob.
            is_there = is_stored(self.folder, sha256, size)
            if not is_there and self._budget.take(size):
                store(self.folder, sha256, size, long.slices())
                is_there = True
        except OSError as error:
            raise log_error(self._path, error) from error
        characters = len(long.value) if isinstance(long.value, str) else None
        return Cut(
            path=list(long.path), kind=long.kind, bytes=size, sha256=sha256, stored=is_there,
            characters=characters,
        )  # fmt: skip

    def _append_cut(self, stream: Stream, fields: dict[str, Any], cuts: list[Cut]) -> None:
        fields["cut"] = [as_plain(each) for each in cuts]
        self._append(stream, fields)

    def _append(self, stream: Stream, fields: dict[str, Any]) -> None:
        line = encode_line(fields)
        if stream in self._torn:
            # A killed run, or a full disk, left a line without an end. This one must not continue it.
            line = b"\n" + line
        descriptor, left = self._lines[stream].fileno(), memoryview(line)
        try:
            # Without a buffer: after a failure, what is left of a line would be written later.
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError as error:
            if len(left) < len(line):
                self._torn.add(stream)
            raise log_error(self._path, error) from error
        self._torn.discard(stream)
        self._budget.count(len(line))
        if self._budget.is_used_up and not self._has_reported and self._budget.limit is not None:
            self._has_reported = True
            self._on_full(self._budget.limit)


def _length(long: LongValue) -> int:
    return len(long.value) if isinstance(long.value, str) else SLICE + 1


def _is_cut_off(file: BinaryIO) -> bool:
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read() != b"\n"


def log_error(folder: str | os.PathLike[str] | None, error: OSError) -> LogError:
    """Return the error for a folder that cannot be written."""
    file = f" ({error.filename})" if error.filename else ""
    advice = sentence(remedy_for(error, "choose another log_dir"))
    return LogError(f"cannot write the logs in {folder}: {error.strerror or error}{file}. {advice}")
