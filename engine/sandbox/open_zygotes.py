"""The zygotes of this process: they must not outlive their event loop, nor be used by a fork."""

from __future__ import annotations

import atexit
import functools
import os
import time
import weakref
from typing import Protocol

from .zygote_process import ZygoteProcess

_EXIT_SECONDS = 1.0
_POLL_SECONDS = 0.01


class Client(Protocol):
    """The engine's end of a zygote."""

    @property
    def is_dropped(self) -> bool:
        """Whether its event loop was closed before it was."""
        ...

    def release(self) -> None:
        """Close all descriptors without the event loop."""
        ...


# Global, since forks and the process's end are. Threads with event loops of their own share them: each use
# is one operation of a dict or list.
_open: weakref.WeakValueDictionary[int, Client] = weakref.WeakValueDictionary()
_ending: list[ZygoteProcess] = []


def register(client: Client, process: ZygoteProcess) -> weakref.finalize[[ZygoteProcess], Client]:
    """Watch a client; detach the finalizer that is returned when the client was closed."""
    _watch_process()
    _open[id(client)] = client
    # For a client that is garbage: its event loop was dropped without an end.
    return weakref.finalize(client, _release, process)


def free_dropped() -> None:
    """End the zygotes of event loops that were closed, and reap."""
    for client in _clients():
        if client.is_dropped:
            client.release()
    _reap()


@functools.cache
def _watch_process() -> None:
    os.register_at_fork(after_in_child=_disown_all)
    atexit.register(_reap_at_exit)


def _clients() -> list[Client]:
    return [client for reference in _open.valuerefs() if (client := reference()) is not None]


def _disown_all() -> None:
    # The sockets are shared with the parent, and so is what arrives there. A fork gets none of it.
    for client in _clients():
        client.release()
    _ending.clear()


def _release(process: ZygoteProcess) -> None:
    process.release()
    if not process.is_reaped():
        # Not waited for: this may be a garbage collection.
        _ending.append(process)


def _reap() -> None:
    for process in list(_ending):
        if process.is_reaped() and process in _ending:
            _ending.remove(process)


def _reap_at_exit() -> None:
    deadline = time.monotonic() + _EXIT_SECONDS
    while _ending and time.monotonic() < deadline:
        _reap()
        time.sleep(_POLL_SECONDS)
