"""Users' tools: guest tools run inside the sandbox, host tools are called by RPC."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import keyword
import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, TypeAlias, cast

from anyio import CapacityLimiter, to_thread

from ...sandbox_image import plain, protocol
from ...sandbox_image.protocol import ToolCode, ToolFailure, ToolReply
from ...sandbox_image.text import printable, replace_surrogates
from ..arguments import describe, reject
from ..errors import TaskError
from .pickling import pickle_tool
from .signatures import BadArguments, Parameters, show_doc, show_signature
from .threads import DaemonThreads

# Names that the sandbox or a run defines, now or in a later version.
RESERVED = frozenset({
    "context", "query", "worker", "worker_batch", "FINAL", "budget", "history",
    "WorkerError", "WorkerBatchError", "ToolError",
})  # fmt: skip

_NAME_CHARS = 64
_MOST_TOOLS = 128
_MOST_SHIPPED_BYTES = 16 << 20
# Tools that hang keep their thread, so there is a bound.
_THREADS = 64

# Failures of one sandbox's tools.
_MOST_LOGGED = 20
# In effect no limit: the engine's own functions cost nothing.
_OWN_CALLS = 1_000_000

_logger = logging.getLogger("supdist.tools")


@dataclass(frozen=True, slots=True)
class HostTool:
    """A function that runs in the engine when guest code calls it.

    Attributes:
        fn: takes and returns plain data; async, or run in a thread.
        max_calls: for a run or a sandbox; failed calls count.
        timeout: seconds for a call. A thread runs on after it.
        description: replaces the docstring's first paragraph.
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
    """A call of a host tool that has ended.

    Attributes:
        cell, call: numbers in the sandbox.
        args, kwargs: plain data; None if they could not be read.
        elapsed: seconds.
        error: the failure that the guest got.
        message: what failed, for the log alone.
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
    name: str
    tool: HostTool
    parameters: Parameters


class Toolbox:
    """Checked tools, for any number of sandboxes."""

    def __init__(self) -> None:
        self.guest: list[protocol.GuestTool] = []
        self.host: list[protocol.HostTool] = []
        self.hosted: list[_Hosted] = []
        self._lines: list[str] = []

    @classmethod
    def of(cls, tools: Mapping[str, Tool] | Toolbox | None) -> Toolbox:
        """Check tools, and pickle guest tools.

        Raises:
            TaskError: a name, a parameter or a function is not allowed.
        """
        if isinstance(tools, Toolbox):
            return tools
        _check_type(tools)
        toolbox = cls()
        for name, tool in (tools or {}).items():
            _check_name(name)
            toolbox._add(name, tool)
        if len(toolbox._lines) > _MOST_TOOLS:
            raise TaskError(f"{len(toolbox._lines)} tools; at most {_MOST_TOOLS} can be given")
        if sum(len(tool.pickle) for tool in toolbox.guest) > _MOST_SHIPPED_BYTES:
            raise TaskError(
                f"the guest tools are larger than {_MOST_SHIPPED_BYTES >> 20} MiB together; "
                "put data into the context"
            )
        return toolbox

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
            self.guest.append(protocol.GuestTool(name, pickle_tool(name, function)))
        self._lines.append(f"- `{head}`{limits}" + (f": {doc}" if doc else ""))

    def with_own(self, functions: Mapping[str, Callable[..., object]]) -> Toolbox:
        """Return a copy with more host functions, which are not described."""
        toolbox = Toolbox()
        toolbox.guest, toolbox.host, toolbox.hosted, toolbox._lines = (
            [*self.guest],
            [*self.host],
            [*self.hosted],
            self._lines,
        )
        for name, function in functions.items():
            tool = HostTool(function, max_calls=_OWN_CALLS)
            toolbox.hosted.append(_Hosted(name, tool, Parameters(name, function)))
            toolbox.host.append(
                protocol.HostTool(name, f"{name}{show_signature(function)}\n\n{show_doc(function)}")
            )
        return toolbox

    def describe(self) -> str:
        """Return a line for the supervisor about each tool."""
        return "\n".join(self._lines)

    def kinds(self) -> dict[str, str]:
        """Return ``guest`` or ``host`` by name."""
        return {tool.name: "guest" for tool in self.guest} | {tool.name: "host" for tool in self.host}


def _check_type(tools: object) -> None:
    if tools is not None and not isinstance(tools, Mapping):
        reject("tools", tools, "a dict of functions by name or None", 'give {"name": function}')


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
        why = f"it would hide Python's own {name}"
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
    # Two messages: an exception's own words may hold what the guest must not know.
    def __init__(self, code: ToolCode, guest_message: str, log_message: str = "") -> None:
        super().__init__(guest_message)
        self.code: ToolCode = code
        self.guest_message = guest_message
        self.log_message = log_message or guest_message


class _NotPlainResult(_Failure):
    def __init__(self, result: object, error: plain.NotPlain) -> None:
        super().__init__("failed", _FAILED, f"its result is {error}; return plain data")
        if isinstance(result, (int, float)):
            self.returned = str(error)
        elif isinstance(result, (list, tuple, dict)):
            # What is wrong is inside of it.
            self.returned = f"{describe(cast(object, result))} with {error}"
        else:
            self.returned = describe(result)


class ToolCalls:
    """Answers the calls of one sandbox.

    Args:
        toolbox: the tools.
        on_use: called after each call; past ``max_calls`` only once.
    """

    def __init__(self, toolbox: Toolbox, on_use: Callable[[ToolUse], None] | None = None) -> None:
        self.toolbox = toolbox
        self._on_use = on_use
        self._counts = [0] * len(toolbox.hosted)
        self._logged = 0
        self._threads = DaemonThreads(_THREADS)
        # A guest's data takes time to read: one at a time, in a thread. Writing results does not wait for it.
        self._reading, self._writing = CapacityLimiter(1), CapacityLimiter(1)

    async def answer(self, call: protocol.ToolCall) -> ToolReply:
        """Return the result of a call, or why there is none."""
        hosted, started = self.toolbox.hosted[call.tool], time.monotonic()
        use = ToolUse(hosted.name, call.cell, call.call)
        self._counts[call.tool] += 1
        over = self._counts[call.tool] - hosted.tool.max_calls
        reply: bytes | ToolFailure
        try:
            _check_budget(hosted.tool, over)
            reply = await self._with_timeout(hosted, call.arguments, use)
        except _Failure as failure:
            use.error, use.message = failure.code, failure.log_message
            self._log(hosted.name, failure)
            reply = ToolFailure(failure.code, replace_surrogates(failure.guest_message))
        except asyncio.CancelledError:
            use.error, use.message = "cancelled", "its cell has ended"
            raise
        finally:
            use.elapsed = time.monotonic() - started
            # A guest could fill the log with refused calls.
            if self._on_use is not None and over <= 1:
                self._on_use(use)
        return ToolReply(call.call, reply)

    def _log(self, tool: str, failure: _Failure) -> None:
        # The guest gets no traceback, so the tool's author needs it here. A guest can make a tool fail often.
        if isinstance(failure, _NotPlainResult):
            words = f"returned {failure.returned}; return data that JSON can hold"
        elif failure.__cause__ is not None:
            words = f"failed: {''.join(traceback.format_exception(failure.__cause__))}"
        else:
            return
        if self._logged < _MOST_LOGGED:
            self._logged += 1
            _logger.warning("host tool %s %s", tool, printable(words))

    async def _with_timeout(self, hosted: _Hosted, arguments: bytes, use: ToolUse) -> bytes:
        clock = asyncio.timeout(hosted.tool.timeout)
        try:
            async with clock:
                return await self._result(hosted, arguments, use)
        # The clock's own: an error of the function is a _Failure already.
        except TimeoutError:
            raise _Failure("timeout", f"no result within {hosted.tool.timeout:g} s") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # Cancelled from outside: the cell has ended.
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
            raise _NotPlainResult(result, error) from None
        # A subclass of dict or list runs code of its own, which may raise anything.
        except Exception as error:
            use.result = None
            raise _failed(error) from error

    async def _run(self, function: Callable[..., object], bound: inspect.BoundArguments) -> object:
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
    # All: SystemExit must not end the engine, and a future cannot carry StopIteration.
    except BaseException as error:
        raise _failed(error) from error


def _read(parameters: Parameters, data: bytes, use: ToolUse) -> inspect.BoundArguments:
    try:
        match plain.decode(data):
            case [list() as args, dict() as kwargs]:
                use.args, use.kwargs = args, kwargs
                return parameters.bind(args, kwargs)
            case _:
                pass
    except (plain.NotPlain, BadArguments) as error:
        raise _Failure("bad_arguments", f"tool {use.tool}: {error}", str(error)) from None
    # A user's type checks by code of its own, which may raise anything.
    except Exception as error:
        raise _failed(error) from error
    raise _Failure("bad_arguments", "the arguments must be a list and a dict")
