"""What several test modules share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import psutil
from supdist.engine import Sandbox

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

Open = Callable[..., AbstractAsyncContextManager[Sandbox]]

SMALL: dict[str, Any] = {"timeout": 5.0, "grace": 0.3, "memory": "256MiB", "pids": 32, "scratch": "64MiB"}


def processes_named(name: str) -> set[int]:
    """Processes below this one with that short name: supdist-zygote, supdist-shim, supdist-init."""
    found: set[int] = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == name:
                found.add(child.pid)
    return found


def descendants(pid: int) -> set[int]:
    """The processes below one, at this moment."""
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def zygotes() -> int:
    """How many zygotes this process has. A shim bears its parent's name for a moment; it is no direct child."""
    return sum(child.name() == "supdist-zygote" for child in psutil.Process().children())
