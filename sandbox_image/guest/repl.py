"""Run the supervisor's code: cell after cell, in one namespace that lasts."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import linecache
import mmap
import os
import pickle
import re
import resource
import signal
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

from .. import protocol
from ..text import KEEP_SURROGATES, escape_surrogates, excerpt
from . import cell_compiler, tools
from .cell_streams import CellStreams
from .cell_tools import CellTools
from .channel import Channel
from .display import Displays
from .hints import hint_for
from .interrupts import guard_handlers
from .limits import apply_gvisor_limits
from .names import CellNames, prepare_interpreter
from .primitives import Primitives
from .procfs import read

_MESSAGE_CHARS = 4_000
_TRACEBACK_CHARS = 24_000
_TRACEBACK_FRAMES = 60
_RESERVED_FILES = 8
_RESERVED_MEMORY = 16 << 20
_ALL_CAPABILITIES = "ffffffffffffffff"

_PACKAGE = __file__.rpartition("/guest/")[0]
# As text in a message, such as the traceback that a process pool brings.
_OWN_FRAMES = re.compile(rf'^([ |+]*)File "{re.escape(_PACKAGE)}/[^\n]*\n(?:\1  [^\n]*\n)*', re.MULTILINE)


def main(sock: socket.socket, context_fd: int | None, interrupted_cell: mmap.mmap) -> NoReturn:
    """Load the context, report that the guest is ready, and run cells."""
    Repl(Channel(sock), interrupted_cell).serve(context_fd)


class Repl:
    """The namespace of the cells, and their loop."""

    def __init__(self, channel: Channel, interrupted_cell: mmap.mmap) -> None:
        self._channel = channel
        # Shared memory with the cell that init interrupts.
        self._interrupted_cell = interrupted_cell
        self._cell = 0
        self._running = False
        # pickle finds classes and functions of cells by this name.
        self._module = types.ModuleType("__main__")
        self._tools = CellTools(self._module.__dict__, self._is_current_thread)
        self._streams = CellStreams(self._is_current_thread)

    def serve(self, context_fd: int | None) -> NoReturn:
        """Run the main loop, which ends with the process."""
        if not self._channel.has_input():
            # The sandbox has no user yet. So the import delays no cell.
            _import_ahead()
        start = self._channel.receive()
        load = self._channel.receive()
        assert isinstance(start, protocol.Start)
        assert isinstance(load, protocol.Load)
        context = load_context(load, context_fd)
        primitives = Primitives(self._channel, start, lambda: cell_of_thread(self._cell))
        sys.modules["__main__"] = self._module
        _mark_threads_with_cell(lambda: self._cell)
        facts = measure()
        apply_gvisor_limits()
        # After the measurement: tools are code of a user.
        prepare_interpreter()
        names = CellNames(start, context, primitives, tools.load(start, primitives))
        self._channel.send(protocol.Ready(protocol.VERSION, facts))
        # After the report: the import takes long, and the host need not wait for it.
        _mark_executors_with_cell(lambda: self._cell)
        guard_handlers(self._channel.interrupts, lambda: self._running)
        while True:
            message = self._channel.receive()
            assert isinstance(message, protocol.Execute)
            displays = Displays(message.cell, start.display_bytes, self._channel.send)
            error: protocol.ErrorInfo | None
            try:
                self._prepare(message.cell, names)
            except BaseException as failed:  # an audit hook of the code may raise anything
                error = describe(failed)
            else:
                error = self._run(message, displays, has_document=names.has_document)
            self._channel.send(protocol.Done(message.cell, error))

    def _prepare(self, cell: int, names: CellNames) -> None:
        self._streams.leave_cell()
        # Move them above 9 first: if the last cell closed fd 1 or 2, the new pipes may have these numbers.
        arrived = self._channel.descriptors(2)
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in arrived]
        for fd in arrived:
            os.close(fd)
        for fd, writer in enumerate(moved, start=1):
            os.dup2(writer, fd)
            os.close(writer)
        self._cell = cell
        self._streams.enter_cell()
        signal.signal(signal.SIGINT, self._on_interrupt)
        names.prepare(self._module.__dict__)
        # It compares times of the folder, which stay the same for a few milliseconds.
        sys.path_importer_cache.pop(protocol.WORK, None)

    def _is_current_thread(self) -> bool:
        return cell_of_thread(self._cell) == self._cell

    def _run(
        self, message: protocol.Execute, displays: Displays, *, has_document: bool
    ) -> protocol.ErrorInfo | None:
        error: protocol.ErrorInfo | None = None
        try:
            self._running = True
            if self._is_interrupted(message.cell):  # before the code began
                raise KeyboardInterrupt  # noqa: TRY301 - described below like the others
            raised = run_code(message, self._module.__dict__, displays, self._tools)
            if raised is not None:
                error = describe(raised, has_document=has_document)
            self._streams.end_cell()
            self._running = False
        except BaseException as late:
            # The interrupt came after the code had ended.
            self._running = False
            error = describe(late)
        self._channel.interrupts.clear()
        return error

    def _on_interrupt(self, *_: object) -> None:
        if self._running and self._is_interrupted(self._cell):
            self._channel.interrupts.run_or_defer(self._tools.loop.interrupt)

    def _is_interrupted(self, cell: int) -> bool:
        return int.from_bytes(self._interrupted_cell[:8], "little") == cell


def run_code(
    message: protocol.Execute, namespace: dict[str, Any], displays: Displays, cell_tools: CellTools
) -> BaseException | None:
    """Run a block and show its last value; return its exception."""
    code, name = message.code, f"<cell {message.cell}>"
    # So that tracebacks show the source.
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        with _Reserve(), displays:
            compiled = cell_compiler.compile_cell(code, name)
            cell_tools.begin(displays, has_magics=compiled.has_magics)
            cell_tools.show(cell_tools.loop.run(compiled, namespace))
    except BaseException as error:
        return error
    return None


def describe(error: BaseException, *, has_document: bool = False) -> protocol.ErrorInfo:
    """Return an exception as text of bounded length."""
    # Its `__str__` is guest code. The clock of the cell still runs.
    try:
        message = str(error)
    except Exception:
        message = "<the exception's __str__ failed>"
    hint = ""
    with contextlib.suppress(Exception):
        hint = hint_for(error, has_document=has_document)
    try:
        report = traceback.TracebackException(
            type(error), error, error.__traceback__, limit=_TRACEBACK_FRAMES, compact=True
        )
        _hide_own_frames(report)
        # The short text is searched: what code raises may be very long.
        text = _OWN_FRAMES.sub("", _cut("".join(report.format()), _TRACEBACK_CHARS))
    except Exception:
        text = f"{type(error).__name__}: {message}\n"
    if hint:
        text = f"{text}Hint: {hint}.\n"
        # The argument of sys.exit() is a status, which callers read.
        if not isinstance(error, SystemExit):
            message = f"{message}. Hint: {hint}" if message else f"Hint: {hint}"
    return protocol.ErrorInfo(
        _cut(type(error).__name__, 200), _cut(message, _MESSAGE_CHARS), _cut(text, _TRACEBACK_CHARS)
    )


def _hide_own_frames(report: traceback.TracebackException | None) -> None:
    # A chain of causes may be a circle.
    seen: set[int] = set()
    while report is not None and id(report) not in seen:
        seen.add(id(report))
        for part in report.exceptions or ():
            _hide_own_frames(part)
        report.stack[:] = [frame for frame in report.stack if not frame.filename.startswith(_PACKAGE)]
        report = report.__cause__ or report.__context__


def _cut(text: str, limit: int) -> str:
    return excerpt(escape_surrogates(text), limit)


def load_context(load: protocol.Load, descriptor: int | None) -> object:
    """Return the context, equal to what the user passed."""
    if load.source == "frame":
        return _decode(load.kind, load.data)
    if load.source == "file":
        fd = os.open(protocol.CONTEXT_FILE, os.O_RDONLY | os.O_CLOEXEC)
    else:
        assert descriptor is not None
        fd = descriptor
    size = os.fstat(fd).st_size
    try:
        if size == 0:
            return _decode(load.kind, b"")
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
            return _decode(load.kind, view)
    finally:
        os.close(fd)


def _decode(kind: str, data: bytes | memoryview) -> object:
    if kind == "text":
        return codecs.utf_8_decode(data, KEEP_SURROGATES, True)[0]
    return pickle.loads(data)  # noqa: S301 - the host wrote it


def measure() -> protocol.Facts:
    """Measure the isolation from inside."""
    # What the kernel does not report counts as missing.
    status = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines() if ":" in line)
    return protocol.Facts(
        namespaces=_namespaces(),
        uid=os.getuid(),
        capabilities=int(status.get("CapEff", _ALL_CAPABILITIES), 16)
        | int(status.get("CapBnd", _ALL_CAPABILITIES), 16),
        no_new_privs=status.get("NoNewPrivs", "").strip() == "1",
        seccomp=status.get("Seccomp", "").strip() == "2",
        interfaces=_interfaces(),
        root_writable=not _root_is_read_only(),
    )


def _root_is_read_only() -> bool:
    if os.statvfs("/").f_flag & os.ST_RDONLY:
        return True
    # gVisor reports it here only. Fields 5 and 6 are the mount point and its options (proc(5), mountinfo).
    mounts = (line.split() for line in read("/proc/self/mountinfo").splitlines())
    return [fields[5].split(",")[0] for fields in mounts if fields[4] == "/"][-1:] == ["ro"]


def _interfaces() -> list[str]:
    try:
        return [line.split(":")[0].strip() for line in read("/proc/self/net/dev").splitlines() if ":" in line]
    except OSError:
        return ["unknown"]


def _namespaces() -> dict[str, int]:
    found: dict[str, int] = {}
    for name in os.listdir("/proc/self/ns"):
        with contextlib.suppress(OSError):
            found[name] = os.stat(f"/proc/self/ns/{name}").st_ino
    return found


class _Reserve:
    # A cell that uses up its limits leaves enough to report it, and to receive the next pipes.

    def __enter__(self) -> None:
        _reserve(resource.RLIMIT_NOFILE, _RESERVED_FILES)
        for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
            _reserve(kind, _RESERVED_MEMORY)

    def __exit__(self, *_: object) -> None:
        _reserve(resource.RLIMIT_NOFILE, 0)
        for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
            _reserve(kind, 0)


def _reserve(kind: int, amount: int) -> None:
    _, ceiling = resource.getrlimit(kind)
    if ceiling != resource.RLIM_INFINITY:
        resource.setrlimit(kind, (ceiling - amount, ceiling))


def cell_of_thread(current: int) -> int:
    """Return the cell that started this thread or its work item."""
    return getattr(threading.current_thread(), "supdist_cell", current)


def _mark_threads_with_cell(current: Callable[[], int]) -> None:
    start = threading.Thread.start

    def start_marked(self: threading.Thread) -> None:
        self.__dict__["supdist_cell"] = cell_of_thread(current())
        start(self)

    threading.Thread.start = start_marked  # type: ignore[method-assign]  # every thread must know its cell


def _import_ahead() -> None:
    import concurrent.futures.thread  # noqa: F401  # pyright: ignore[reportUnusedImport]  # kept in sys.modules


def _mark_executors_with_cell(current: Callable[[], int]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    submit = ThreadPoolExecutor.submit

    def submit_marked(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        cell = cell_of_thread(current())

        def work() -> Any:
            threading.current_thread().__dict__["supdist_cell"] = cell
            return fn(*args, **kwargs)

        return submit(self, work)

    ThreadPoolExecutor.submit = submit_marked  # type: ignore[method-assign, assignment]  # every work item must know its cell
