"""Advice for errors whose reason is the sandbox."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import cast

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT)
_UNREACHABLE = (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH)
_CONNECT = frozenset({"connect", "connect_ex", "sendto"})
_NO_NETWORK = "the sandbox has no network"
_NO_TERMINAL = "there is no terminal: "
# Libraries wrap an error a few times. Guest code can wrap it without end.
_MOST_CAUSES = 32
_MOST_ARGUMENTS = 8

# By the message of asyncio's RuntimeError.
_EVENT_LOOP = {
    "no running event loop": "add an await to the cell, such as `await asyncio.sleep(0)`",
    "asyncio.run() cannot be called from a running event loop": (
        "write `await main()` in the place of `asyncio.run(main())`"
    ),
}
# Names that IPython puts into each notebook, or that notebooks import.
_NOTEBOOK = {
    "clear_output": "this is no notebook, and printed text stays: remove the call",
    "get_ipython": "this is no IPython: write its commands as lines, such as `%time f()` or `!ls`",
    "HTML": "write the HTML below a first line `%%html`",
    "Markdown": "write the text below a first line `%%markdown`, or print it",
}


def hint_for(error: BaseException, *, has_document: bool) -> str:
    """Return what to do about an error, or an empty text."""
    match error:
        case SystemExit():
            return "only the cell ended; the session goes on, with its variables"
        case RuntimeError(args=(str(message),)) if message in _EVENT_LOOP:
            return _EVENT_LOOP[message]
        case NameError(name=str(name)) if name in _NOTEBOOK:
            return _NOTEBOOK[name]
        case EOFError() if _is_raised_in(error, "getpass"):
            return f"{_NO_TERMINAL}assign the value in the code"
        case Exception() if type(error).__name__ == "BdbQuit":
            return f"{_NO_TERMINAL}print the values in the place of a debugger"
        case ModuleNotFoundError(name=str(name)) if _is_foreign(name):
            shown = ". `display(x)` is there without an import" if name == "IPython" else ""
            return (
                f"{name} is not in the sandbox, which has no network to install it. Use the standard "
                f"library; the caller of the sandbox can add packages (`packages`, --packages){shown}"
            )
        case OSError(errno=number) if number in _FULL:
            return (
                "the sandbox's disk is full: /work and /tmp have a fixed size. Delete files, or write less; "
                "the caller of the sandbox can raise `scratch`"
            )
        case FileNotFoundError(filename=str(name)) if has_document and not _is_own(name):
            return "the host's files are not in the sandbox; the document is in the variable `context`"
        case _:
            return _NO_NETWORK if any(map(_is_network, _causes(error))) else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that it wraps: libraries keep them in several places."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_CAUSES:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, getattr(found, "reason", None), *found.args[:_MOST_ARGUMENTS]]
        # Python's own errors, such as a ZeroDivisionError, come from what handles the error.
        if isinstance(found, OSError) or type(found).__module__ != "builtins":
            waiting.append(found.__context__)
        if isinstance(found, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", found)
            waiting += group.exceptions[:_MOST_ARGUMENTS]


def _is_foreign(name: str) -> bool:
    return "." not in name and name not in sys.stdlib_module_names


def _is_own(path: str) -> bool:
    # The code works with files of its own there.
    folder = os.path.dirname(path)
    return bool(folder) and os.path.isabs(folder) and os.path.isdir(folder)


def _is_network(error: object) -> bool:
    if not isinstance(error, OSError):
        return False
    return (
        isinstance(error, socket.gaierror)
        or error.errno in _UNREACHABLE
        or (error.errno in _REFUSED and error.filename is None and _is_from_socket(error))
    )


def _is_from_socket(error: OSError) -> bool:
    # The filter of system calls refuses socket(2), or connect(2), which libraries call themselves.
    frame = _last_frame(error)
    return frame is not None and (
        frame.f_globals.get("__name__") == "socket" or not _CONNECT.isdisjoint(frame.f_code.co_names)
    )


def _is_raised_in(error: BaseException, module: str) -> bool:
    frame = _last_frame(error)
    return frame is not None and frame.f_globals.get("__name__") == module


def _last_frame(error: BaseException) -> FrameType | None:
    found = error.__traceback__
    while found is not None and found.tb_next is not None:
        found = found.tb_next
    return None if found is None else found.tb_frame
