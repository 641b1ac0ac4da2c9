"""What several test modules share."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from supdist.engine import Sandbox

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

Open = Callable[..., AbstractAsyncContextManager[Sandbox]]

SMALL: dict[str, Any] = {"timeout": 5.0, "grace": 0.3, "memory": "256MiB", "pids": 32, "scratch": "64MiB"}


def processes_named(*names: str) -> list[int]:
    """Processes whose short name is one of these: zygotes, shims and inits of any engine on the machine."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                comm = Path(f"/proc/{entry}/comm").read_text().strip()
            except OSError:
                continue
            if comm in names:
                found.append(int(entry))
    return found


def descendants(pid: int) -> set[int]:
    """The processes below one, at this moment."""
    import psutil

    return {child.pid for child in psutil.Process(pid).children(recursive=True)}
