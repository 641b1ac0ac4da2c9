"""Where the log of a command's run goes, and how a run that did not end goes on."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...handlers import HandlerError
from ...sandbox_image.text import printable
from ..broker.cache import ResponseCache
from ..config import RunConfig
from ..errors import CacheError, TaskError
from ..events import Event, SupervisorReplied
from ..private_files import PrivateFolder, resolved
from ..runlog.files import OptionalLogDir, log_error
from ..terminal import wrapped
from ..write_failures import remedy_for
from .exit import fail
from .kept_runs import RUNS, Killed, killed_runs, new_run
from .raised_limits import raised_limits
from .run_record import RunFacts, RunRecord
from .signals import Stopped
from .typed_command import PROGRAM, resuming, typed_command

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..result import RunResult
    from .run_flags import RunFlags
    from .work import Work

_Opened = tuple[PrivateFolder, RunRecord]

_ANSWERS = re.compile(r"answers(?:-(\d+))?\.sqlite", re.ASCII)


class RunLog:
    """The log of the run of a command.

    Attributes:
        folder: of the log; None without one.
        is_optional: nobody asked for it, so a run goes on without it.
        has_own_answers: paid answers are kept in it, only so that the run can go on.
    """

    def __init__(self, work: Work) -> None:
        """Open nothing yet."""
        self._work = work
        self._run = RunFacts(typed_command(work.asked), reads_stdin=work.reads_stdin)
        self._answers: str | None = None
        self._has_paid = False
        self._config: RunConfig | None = None
        self.folder: Path | None = None
        self.is_optional = self.has_own_answers = False

    @asynccontextmanager
    async def open(self, config: RunConfig) -> AsyncGenerator[RunConfig]:
        """Open the folder; yield the options with it and with its file of answers.

        Raises:
            TaskError: there is nothing to go on with, or another run has the folder.
            LogError: a folder that the user or the task named cannot be written.
        """
        self._config = config
        with ExitStack() as stack:
            opened = self._open_folder(stack)
            if opened is None:
                _tell_killed_runs()
                yield config
                return
            folder, record = opened
            is_resumed = self._work.flags.resume is not None
            self._begin(folder, record, is_resumed=is_resumed)
            # Behind the lock, so that a run which goes on is not called killed.
            _tell_killed_runs()
            log_dir = OptionalLogDir(folder.path) if self.is_optional else folder.path
            try:
                cache = await self._open_answers(folder, config, is_resumed=is_resumed)
                counts = config.cache_counts or is_resumed
                yield replace(config, log_dir=log_dir, cache=cache, cache_counts=counts)
            finally:
                with suppress(OSError):
                    record.end()

    def watch(self, event: Event) -> None:
        """Note whether anything was paid for."""
        if isinstance(event, SupervisorReplied):
            self._has_paid = True

    def forget_answers(self, result: RunResult) -> None:
        """Remove the answers of a run that has ended well: nobody goes on with it."""
        if result.stop_reason != "final" or self._answers is None or self.folder is None:
            return
        for suffix in ("", "-wal", "-shm", "-journal"):
            with suppress(OSError):
                os.unlink(self.folder / f"{self._answers}{suffix}")
        self._answers = None

    def shown(self) -> str | None:
        """Return the folder for a message, relative to the working directory if it is below."""
        return None if self.folder is None else _relative(self.folder)

    def how_to_go_on(self) -> list[str]:
        """Return lines about a run that did not end."""
        if not self._has_paid:
            return []
        if self._answers is not None and self.folder is not None:
            return [_go_on(self._run, _relative(self.folder))]
        cache = self._work.cache()
        if isinstance(cache, Path):
            return [f"paid answers are kept in {printable(str(cache))}; the same command uses them"]
        return [
            "no paid answers are kept: the same command pays again. A log folder or --cache FILE keeps them"
        ]

    def what_to_type(self, result: RunResult) -> list[str]:
        """Return lines that end with a command: to read the log, and to go on without an answer."""
        lines: list[str] = []
        if (place := self.shown()) is not None:
            lines.append(f"to read its log: {PROGRAM} log {shlex.quote(place)}")
        if result.stop_reason == "final" or self._answers is None:
            return lines
        if not self._has_paid:
            return lines
        raised = {} if self._config is None else raised_limits(result, self._config)
        return [*lines, _go_on(self._run, place or "", raised)]

    def _open_folder(self, stack: ExitStack) -> _Opened | None:
        work = self._work
        if work.flags.no_log:
            return None
        if (resumed := work.flags.resume) is not None:
            self.folder = resolved(resumed)
            try:
                folder = stack.enter_context(PrivateFolder.open(resumed))
                return folder, _lock(stack, folder)
            except BlockingIOError as error:
                raise TaskError(f"--resume {resumed}: its run goes on; wait for its end") from error
            except OSError as error:
                raise TaskError(f"--resume {resumed}: {error.strerror}") from error
        return self._open_named(stack) if work.log_dir() is not None else self._open_default(stack)

    def _open_default(self, stack: ExitStack) -> _Opened | None:
        if self._work.has_no_log:
            return None
        try:
            folder = stack.enter_context(new_run(self._work.task.query))
            record = _lock(stack, folder)
        except OSError as error:
            why = f"{error.filename or RUNS}: {error.strerror or error}"
            advice = remedy_for(error, "name another folder with --log-dir, or say --no-log")
            _note(f"this run has no log: {why}; {advice}")
            return None
        self.folder, self.is_optional = folder.path, True
        return folder, record

    def _open_named(self, stack: ExitStack) -> _Opened:
        for number in itertools.count(1):
            place = self._work.log_dir("" if number == 1 else f"-{number}")
            assert place is not None
            try:
                folder = stack.enter_context(PrivateFolder.open(place, create=True))
                record = _lock(stack, folder)
            except BlockingIOError:
                continue
            except OSError as error:
                raise log_error(place, error) from error
            self.folder = folder.path
            if number > 1:
                _note(f"another run goes on in {self._work.log_dir()}: this one is logged in {place}")
            return folder, record
        raise AssertionError

    def _begin(self, folder: PrivateFolder, record: RunRecord, *, is_resumed: bool) -> None:
        try:
            before = record.read()
            if before.is_own and not before.has_ended and not is_resumed:
                _tell_killed(Killed(folder.path, before))
            record.begin(self._run.command, reads_stdin=self._run.reads_stdin)
        except OSError as error:
            # The log says the same with its first line.
            if not self.is_optional:
                raise log_error(folder.path, error) from error

    async def _open_answers(
        self, folder: PrivateFolder, config: RunConfig, *, is_resumed: bool
    ) -> str | os.PathLike[str] | ResponseCache:
        if not self._work.cache_is_default:
            if is_resumed:
                raise TaskError("--resume takes the answers of its folder: omit the cache")
            return config.cache
        numbers = [int(found[1] or 1) for name in folder.names() if (found := _ANSWERS.fullmatch(name))]
        if is_resumed and not numbers:
            raise TaskError(
                f"--resume {self._work.flags.resume}: it holds no answers to go on with. "
                "A run that has answered needs none"
            )
        number = max(numbers, default=0) + (not is_resumed)
        name = "answers.sqlite" if number == 1 else f"answers-{number}.sqlite"
        cache = ResponseCache(folder.path / name, own=True, numbers_samples=not config.cache_sampled)
        try:
            # Opened for a moment: a run without a log still has its own cache in memory.
            async with cache:
                self._answers, self.has_own_answers = name, True
        except CacheError as error:
            if is_resumed:
                raise
            _note(f"paid answers are not kept: {error}")
            return config.cache
        return cache


def check_log_flags(flags: RunFlags) -> None:
    """Raise a ``TaskError`` for flags that exclude each other."""
    if flags.no_log and flags.log_dir is not None:
        raise TaskError("--no-log and --log-dir exclude each other")
    if flags.resume is not None:
        for name, value in (("no-log", flags.no_log), ("log-dir", flags.log_dir), ("cache", flags.cache)):
            if value:
                raise TaskError(f"--resume and --{name} exclude each other: a run goes on in its own folder")


@contextmanager
def how_it_goes_on(log: RunLog) -> Generator[None]:
    """Say where the log of a run without a result is, and how to go on."""
    try:
        yield
    except Stopped as stopped:
        kept = f"; the logs are in {log.shown()}" if log.folder else ""
        fail(stopped.status, "\nsupdist-engine: ".join([f"{stopped}{kept}", *log.how_to_go_on()]))
    except HandlerError:
        # Before the error, which the command prints last.
        if log.folder:
            _note(f"the logs are in {log.shown()}")
        for line in log.how_to_go_on():
            _note(line)
        raise


def _tell_killed_runs() -> None:
    for killed in killed_runs():
        _tell_killed(killed)


def _tell_killed(killed: Killed) -> None:
    place = _relative(killed.folder)
    _note(f"an earlier run was killed; its log is in {place}")
    # A run with a cache of its own, or with none, has no answers to go on with.
    if killed.facts.command and any(_ANSWERS.fullmatch(each.name) for each in killed.folder.iterdir()):
        is_here = killed.facts.folder == os.getcwd()
        _note(_go_on(killed.facts, place if is_here else str(killed.folder)))


def _go_on(run: RunFacts, place: str, raised: Mapping[str, str] | None = None) -> str:
    # The supervisor is told its limits, so with others its turns are new requests.
    how = "with a higher limit and the worker's paid answers" if raised else "without paying twice"
    stdin = ", with the same stdin" if run.reads_stdin else ""
    return f"to go on {how}{stdin}: {resuming(run.command, place, raised)}"


def _lock(stack: ExitStack, folder: PrivateFolder) -> RunRecord:
    record = RunRecord.lock(folder, is_required=False)
    stack.callback(record.close)
    return record


def _relative(folder: Path) -> str:
    # The working directory may have been removed, or the folder is not below it.
    with suppress(OSError, ValueError):
        return str(folder.relative_to(os.path.realpath(os.curdir)))
    return str(folder)


def _note(text: str) -> None:
    print(wrapped(f"supdist-engine: {printable(text)}"), file=sys.stderr)
