"""Defer fork hooks (``os.register_at_fork``) until the repl runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

_register = os.register_at_fork
_deferred: list[dict[str, Callable[[], Any]]] = []


def defer() -> None:
    """Collect the hooks that are registered from now on."""
    # threading, logging, random and concurrent.futures register hooks in the zygote. Of three forks for a
    # sandbox only the last, the repl, runs code that forks. Run in each, they would copy as many pages as the
    # rest of the fork.
    os.register_at_fork = _defer


def register_deferred() -> None:
    """Register the collected hooks, and run those for a child."""
    os.register_at_fork = _register
    for hooks in _deferred:
        _register(**hooks)
        if "after_in_child" in hooks:
            hooks["after_in_child"]()
    _deferred.clear()


def _defer(**hooks: Any) -> None:  # Any: typeshed allows None, Python refuses it
    _deferred.append(hooks)
