"""What modules have Python do in each process that forks, kept for the one whose forks are a guest's.

``threading``, ``logging``, ``random`` and ``concurrent.futures`` register such work (``os.register_at_fork``) when they are
imported, which the zygote does for all. Of the three forks that make a sandbox only the last, the repl, uses them; in the
others it would be as much memory written as the rest of a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

_register = os.register_at_fork
_kept: list[dict[str, Callable[[], Any]]] = []


def keep() -> None:
    """From now on, in this process and its forks, keep what is registered, for ``hand_over``."""
    os.register_at_fork = _keep


def hand_over() -> None:
    """Let Python have what was kept, and do what a new process is to do of it. Where nothing was kept, nothing changes."""
    os.register_at_fork = _register
    for hooks in _kept:
        _register(**hooks)
        if "after_in_child" in hooks:
            hooks["after_in_child"]()
    _kept.clear()


def _keep(**hooks: Any) -> None:  # Any: typeshed allows None, Python refuses it
    _kept.append(hooks)
