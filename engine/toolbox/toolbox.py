"""Tools: functions of a user's that a supervisor's code finds beside ``worker``.

A plain function is a *guest tool*: it travels into the sandbox and runs behind the walls, with all that it uses. A
``HostTool`` stays in the engine, with its secrets; the guest can but call it, and is told of a failure only its kind.
"""

from __future__ import annotations

import asyncio
import builtins
import inspect
import keyword
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, TypeAlias

from anyio import CapacityLimiter, to_thread

from ...sandbox_image import plain, protocol
from ...sandbox_image.protocol import ToolCode, ToolFailure, ToolReply
from ...sandbox_image.text import replace_surrogates
from ..errors import TaskError
from .pickling import ship
from .signatures import BadArguments, Parameters, show_doc, show_signature
from .threads import DaemonThreads

RESERVED = frozenset({
    "context", "query", "worker", "worker_batch", "FINAL", "budget", "history", "WorkerError", "WorkerBatchError", "ToolError",
})  # fmt: skip
"""Names that are the engine's own, some of them not used yet."""

_NAME_CHARS = 64
_MOST_TOOLS = 128
_MOST_SHIPPED_BYTES = 16 << 20
_THREADS = 64
_OWN_CALLS = 1_000_000


@dataclass(frozen=True, slots=True)
class HostTool:
    """A function that runs in the engine when a guest calls it.

    Its arguments and its result are plain data (see ``sandbox_image/plain.py``).

    Attributes:
        fn: plain, and then called in a thread, or ``async``. It may be called many times at once.
        max_calls: how often a run, or an opened sandbox, may call it; failed calls count.
        timeout: seconds for a call. A plain function cannot be stopped: it runs on in its thread, and what it gives
            is dropped.
        description: for the supervisor; by default the first paragraph of the docstring.
    """

    fn: Callable[..., object]
    _: KW_ONLY
    max_calls: int = 1000
    timeout: float = 60.0
    description: str | None = None


Tool: TypeAlias = Callable[..., object] | HostTool
"""A function for the code of a sandbox: a plain function runs inside, a ``HostTool`` runs in the engine."""


@dataclass(slots=True)
class ToolUse:
    """A call of a host tool, told when it has ended.

    Attributes:
        tool: its name.
        cell, call: where it came from; a sandbox numbers both.
        args, kwargs: what it was called with, as plain data; None where that could not be read.
        elapsed: seconds.
        result: what the function gave.
        error: what kind of failure the guest was told of; None where there was none.
        message: what failed, in words that the guest did not get.
    """

    tool: str
    cell: int
    call: int
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    elapsed: float = 0.0
    result: object = None
    error: ToolCode | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class _Hosted:
    """A host tool that was found good."""

    name: str
    tool: HostTool
    parameters: Parameters


class Toolbox:
    """Tools that were found good, ready for any number of sandboxes. Made by ``of``."""

    def __init__(self) -> None:
        self.guest: list[protocol.GuestTool] = []
        self.host: list[protocol.HostTool] = []
        self.hosted: list[_Hosted] = []
        self._lines: list[str] = []

    @classmethod
    def of(cls, tools: Mapping[str, Tool] | Toolbox | None) -> Toolbox:
        """Check tools, and make guest tools ready to travel.

        Raises:
            TaskError: a name that cannot be had, a function that cannot be sent, or whose parameters cannot be checked.
        """
        if isinstance(tools, Toolbox):
            return tools
        box = cls()
        for name, tool in (tools or {}).items():
            _check_name(name)
            box._add(name, tool)
        if len(box._lines) > _MOST_TOOLS:
            raise TaskError(f"{len(box._lines)} tools; at most {_MOST_TOOLS} can be had")
        if sum(len(tool.pickle) for tool in box.guest) > _MOST_SHIPPED_BYTES:
            raise TaskError(
                f"the tools bring more than {_MOST_SHIPPED_BYTES >> 20} MiB along; put data into the context"
            )
        return box

    def _add(self, name: str, tool: Tool) -> None:
        function = tool.fn if isinstance(tool, HostTool) else tool
        if not callable(function):
            raise TaskError(f"tool {name}: give a function, not a value of type {type(function).__name__}")
        head, limits, doc = f"{name}{show_signature(function)}", "", show_doc(function)
        if isinstance(tool, HostTool):
            _check_limits(name, tool)
            doc = show_doc(function, tool.description)
            limits = (
                f" (on the host: plain data in and out, at most {tool.max_calls} calls, raises ToolError)"
            )
            self.hosted.append(_Hosted(name, tool, Parameters(name, function)))
            self.host.append(protocol.HostTool(name, replace_surrogates(f"{head}\n\n{doc}")))
        else:
            self.guest.append(protocol.GuestTool(name, ship(name, function)))
        self._lines.append(f"- `{head}`{limits}" + (f": {doc}" if doc else ""))

    def with_own(self, functions: Mapping[str, Callable[..., object]]) -> Toolbox:
        """The same tools and, for the engine's own names, host functions that the prompt tells of itself."""
        box = Toolbox()
        box.guest, box.host, box.hosted, box._lines = [*self.guest], [*self.host], [*self.hosted], self._lines
        for name, function in functions.items():
            tool = HostTool(function, max_calls=_OWN_CALLS)
            box.hosted.append(_Hosted(name, tool, Parameters(name, function)))
            box.host.append(
                protocol.HostTool(name, f"{name}{show_signature(function)}\n\n{show_doc(function)}")
            )
        return box

    def describe(self) -> str:
        """What a supervisor is told of the tools, a line each; empty where there are none."""
        return "\n".join(self._lines)

    def kinds(self) -> dict[str, str]:
        """Each tool's name, and whether it is a guest's or the host's."""
        return {tool.name: "guest" for tool in self.guest} | {tool.name: "host" for tool in self.host}


def _check_name(name: object) -> None:
    why = None
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        why = "a name is letters, digits and _, and does not begin with a digit"
    elif len(name) > _NAME_CHARS:
        why = f"a name has at most {_NAME_CHARS} characters"
    elif keyword.iskeyword(name):
        why = "it is a keyword of Python"
    elif name in RESERVED:
        why = "the engine gives this name to the code itself"
    elif hasattr(builtins, name):
        why = "it would hide Python's own"
    elif name.startswith("__"):
        why = "names with two underscores are Python's"
    if why is not None:
        raise TaskError(f"a tool cannot be called {name!r}: {why}")


def _check_limits(name: str, tool: HostTool) -> None:
    if tool.max_calls < 1:
        raise TaskError(f"tool {name}: max_calls must be at least 1, not {tool.max_calls}")
    if not (math.isfinite(tool.timeout) and tool.timeout > 0):
        raise TaskError(f"tool {name}: timeout must be a positive number of seconds, not {tool.timeout}")


class _Failure(Exception):
    """Why a call has no result: a code and a text for the guest, and for the log what the host knows."""

    def __init__(self, code: ToolCode, told: str, known: str = "") -> None:
        super().__init__(told)
        self.code: ToolCode = code
        self.told = told
        self.known = known or told


class ToolCalls:
    """Answers the calls of one sandbox, and keeps its budgets.

    Args:
        toolbox: the tools.
        on_use: told of every call that ended. Of those over the budget, of a tool's first alone.
    """

    def __init__(self, toolbox: Toolbox, on_use: Callable[[ToolUse], None] | None = None) -> None:
        self.toolbox = toolbox
        self._on_use = on_use
        self._counts = [0] * len(toolbox.hosted)
        self._threads = DaemonThreads(_THREADS)
        # What a guest sends takes a while to read: one at a time, out of the loop. What is answered waits for none of it.
        self._reading, self._writing = CapacityLimiter(1), CapacityLimiter(1)

    async def answer(self, call: protocol.ToolCall) -> ToolReply:
        """The result of a call, or why there is none. Cancelled when the cell ends."""
        hosted, started = self.toolbox.hosted[call.tool], time.monotonic()
        use = ToolUse(hosted.name, call.cell, call.call)
        self._counts[call.tool] += 1
        over = self._counts[call.tool] - hosted.tool.max_calls
        reply: bytes | ToolFailure
        try:
            _check_budget(hosted.tool, over)
            reply = await self._in_time(hosted, call.arguments, use)
        except _Failure as failure:
            use.error, use.message = failure.code, failure.known
            reply = ToolFailure(failure.code, replace_surrogates(failure.told))
        except asyncio.CancelledError:
            use.error, use.message = "cancelled", "its cell has ended"
            raise
        finally:
            use.elapsed = time.monotonic() - started
            if self._on_use is not None and over <= 1:
                self._on_use(use)
        return ToolReply(call.call, reply)

    async def _in_time(self, hosted: _Hosted, arguments: bytes, use: ToolUse) -> bytes:
        clock = asyncio.timeout(hosted.tool.timeout)
        try:
            async with clock:
                return await self._result(hosted, arguments, use)
        except TimeoutError:  # ours: a function's own is a _Failure
            raise _Failure("timeout", f"no result within {hosted.tool.timeout:g} s") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise _Failure(
                "cancelled", "the call was cancelled", "the function was cancelled from within"
            ) from None

    async def _result(self, hosted: _Hosted, arguments: bytes, use: ToolUse) -> bytes:
        bound = await to_thread.run_sync(_read, hosted.parameters, arguments, use, limiter=self._reading)
        use.result = result = await self._run(hosted.tool.fn, bound)
        try:
            return await to_thread.run_sync(
                plain.encode, result, protocol.TOOL_RESULT_BYTES, limiter=self._writing
            )
        except plain.TooLarge as error:
            use.result = None
            raise _Failure("too_large", f"the result is {error}") from None
        except plain.NotPlain as error:
            use.result = None
            raise _Failure("failed", _FAILED, f"its result is {error}, where plain data belongs") from None

    async def _run(self, function: Callable[..., object], bound: inspect.BoundArguments) -> object:
        """Call it, in a thread unless it is ``async``."""
        if inspect.iscoroutinefunction(function):
            awaitable: object = function(*bound.args, **bound.kwargs)
        else:
            awaitable = await self._threads.run(partial(_call, function, bound))
        if not inspect.isawaitable(awaitable):
            return awaitable
        try:
            return await awaitable
        except (Exception, SystemExit) as error:
            raise _failed(error) from error


_FAILED = "the tool failed"


def _check_budget(tool: HostTool, over: int) -> None:
    if over > 0:
        raise _Failure("budget_exceeded", f"all {tool.max_calls} calls are used")


def _failed(error: BaseException) -> _Failure:
    return _Failure("failed", _FAILED, f"{type(error).__name__}: {error}")


def _call(function: Callable[..., object], bound: inspect.BoundArguments) -> object:
    try:
        return function(*bound.args, **bound.kwargs)
    except BaseException as error:  # an exit is none of the engine's, and a StopIteration no future can carry
        raise _failed(error) from error


def _read(parameters: Parameters, data: bytes, use: ToolUse) -> inspect.BoundArguments:
    """What a guest sent, as the function takes it."""
    try:
        match plain.decode(data):
            case [list() as args, dict() as kwargs]:
                use.args, use.kwargs = args, kwargs
                return parameters.bind(args, kwargs)
            case _:
                pass
    except (plain.NotPlain, BadArguments) as error:
        raise _Failure("bad_arguments", str(error)) from None
    except Exception as error:  # of a type of the user's, which checks by code of its own
        raise _failed(error) from error
    raise _Failure("bad_arguments", "no list and dict of arguments")
