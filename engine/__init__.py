"""The engine: a supervisor's code, run behind walls, with a worker model at its call.

Names are imported when they are used, so that ``supdist-engine --help`` does not pay for the whole engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import RunLimits, arun, run
    from .errors import (
        CacheError,
        EngineError,
        LocalProtocolError,
        LogError,
        ProtocolError,
        RemoteProtocolError,
        SandboxError,
        SandboxFileError,
        SandboxLost,
        SandboxUnavailable,
        TaskError,
    )
    from .prompts import Prompts
    from .result import RunResult
    from .sandbox import (
        CellResult,
        Display,
        Engine,
        Isolation,
        Outcome,
        Sandbox,
        SandboxConfig,
        SyncSandbox,
        open_sandbox,
    )
    from .service import RemoteHandler
    from .tools import HostTool

__all__ = [
    "CacheError",
    "CellResult",
    "Display",
    "Engine",
    "EngineError",
    "HostTool",
    "Isolation",
    "LocalProtocolError",
    "LogError",
    "Outcome",
    "Prompts",
    "ProtocolError",
    "RemoteHandler",
    "RemoteProtocolError",
    "RunLimits",
    "RunResult",
    "Sandbox",
    "SandboxConfig",
    "SandboxError",
    "SandboxFileError",
    "SandboxLost",
    "SandboxUnavailable",
    "SyncSandbox",
    "TaskError",
    "arun",
    "open_sandbox",
    "run",
]

_HOMES = {
    "api": ("RunLimits", "arun", "run"),
    "prompts": ("Prompts",),
    "result": ("RunResult",),
    "sandbox": (
        "CellResult", "Display", "Engine", "Isolation", "Outcome", "Sandbox", "SandboxConfig", "SyncSandbox",
        "open_sandbox",
    ),
    "service": ("RemoteHandler",),
    "tools": ("HostTool",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOME_OF.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value
