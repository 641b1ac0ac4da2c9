"""The zygotes of this process: they must not outlive their event loop, nor be used by a fork."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import functools
import os
import weakref
from typing import Protocol

from .context import ContextMemory
from .zygote_process import ZygoteProcess


class Client(Protocol):
    """The engine's end of a zygote."""

    @property
    def is_dropped(self) -> bool:
        """Whether its event loop was closed before it was."""
        ...

    @property
    def has_running_loop(self) -> bool:
        """Whether its event loop runs, if only in another thread."""
        ...

    def release(self) -> None:
        """Close all descriptors without the event loop."""
        ...


# Global, since forks are. Threads with event loops of their own share it: each use is one operation.
_open: weakref.WeakValueDictionary[int, Client] = weakref.WeakValueDictionary()


def register(
    client: Client, process: ZygoteProcess, contexts: ContextMemory
) -> weakref.finalize[[ZygoteProcess, ContextMemory], Client]:
    """Watch a client; detach the finalizer that is returned when it is released."""
    _watch_process()
    _open[id(client)] = client
    # For a client that is garbage: its event loop was dropped without an end.
    finalizer = weakref.finalize(client, release, process, contexts)
    # At the end of the process its event loop may still run, in another thread, and close it in order.
    finalizer.atexit = False
    return finalizer


def free_dropped() -> None:
    """End the zygotes of event loops that were closed."""
    for client in _clients():
        if client.is_dropped:
            client.release()


@functools.cache
def _watch_process() -> None:
    os.register_at_fork(after_in_child=_disown_all)
    atexit.register(_release_idle)


def _clients() -> list[Client]:
    return [client for reference in _open.valuerefs() if (client := reference()) is not None]


def _disown_all() -> None:
    # The sockets are shared with the parent, and so is what arrives there. A fork gets none of it.
    for client in _clients():
        client.release()


def _release_idle() -> None:
    for client in _clients():
        if not client.has_running_loop:
            client.release()


def release(process: ZygoteProcess, contexts: ContextMemory) -> None:
    """Close what a client holds, and reap its zygote."""
    contexts.close()
    process.release()
    if not process.is_reaped():
        # In a thread: this may be a garbage collection. Without ``threading``, whose locks the collected code
        # may hold. At the end of the interpreter none can be started, and the system reaps.
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(process.reap, ())
