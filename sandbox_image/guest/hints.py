"""Advice for errors whose reason is the sandbox."""

from __future__ import annotations

import errno
import os
import socket
import sys

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT)
_UNREACHABLE = (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH)


def hint_for(error: BaseException, *, has_document: bool) -> str:
    """Return what to do about an error, or an empty text."""
    match error:
        case ModuleNotFoundError(name=str(name)) if _is_foreign(name):
            return (
                f"{name} is not in the sandbox, which has no network to install it. Use the standard "
                "library; the caller of the sandbox can add packages (`packages`, --packages)"
            )
        case OSError(errno=number) if number in _FULL:
            return (
                "the sandbox's disk is full: /work and /tmp have a fixed size. Delete files, or write less; "
                "the caller of the sandbox can raise `scratch`"
            )
        case FileNotFoundError(filename=str(name)) if has_document and not _is_own(name):
            return "the host's files are not in the sandbox; the document is in the variable `context`"
        case OSError() if _is_network(error) or _is_network(getattr(error, "reason", None)):
            return "the sandbox has no network"
        case _:
            return ""


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
        or (error.errno in _REFUSED and _is_from_socket(error))
    )


def _is_from_socket(error: OSError) -> bool:
    # The filter of system calls refuses socket(2).
    found = error.__traceback__
    while found is not None and found.tb_next is not None:
        found = found.tb_next
    return found is not None and found.tb_frame.f_globals.get("__name__") == "socket"
