"""Run a supervisor model's code in a sandbox; the code can call a worker model.

Each name is imported at its first use: ``supdist-engine --help`` does not import the whole engine.
"""

from __future__ import annotations

from importlib import import_module

# jedi completes the names below only if they depend on typing's constant.
from typing import TYPE_CHECKING
from warnings import warn

if TYPE_CHECKING:
    from .api import arun, astream, run
    from .config import RunConfig
    from .documents import aread_documents, read_documents
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
    from .limits import RunLimits
    from .result import RunResult
    from .sandbox import (
        CellResult,
        Display,
        ErrorInfo,
        FileEntry,
        Isolation,
        Listing,
        Outcome,
        Sandbox,
        SandboxConfig,
        SandboxRuntime,
        SyncSandbox,
        as_data,
        open_sandbox,
    )
    from .service import RemoteHandler
    from .supervisor.prompts import Prompts
    from .toolbox.toolbox import HostTool, Tool

    Engine = SandboxRuntime  # its old name
    __version__: str

__all__ = [
    "CacheError",
    "CellResult",
    "Display",
    "EngineError",
    "ErrorInfo",
    "FileEntry",
    "HostTool",
    "Isolation",
    "Listing",
    "LocalProtocolError",
    "LogError",
    "Outcome",
    "Prompts",
    "ProtocolError",
    "RemoteHandler",
    "RemoteProtocolError",
    "RunConfig",
    "RunLimits",
    "RunResult",
    "Sandbox",
    "SandboxConfig",
    "SandboxError",
    "SandboxFileError",
    "SandboxLost",
    "SandboxRuntime",
    "SandboxUnavailable",
    "SyncSandbox",
    "TaskError",
    "Tool",
    "aread_documents",
    "arun",
    "as_data",
    "astream",
    "open_sandbox",
    "read_documents",
    "run",
]

_HOMES = {
    "api": ("arun", "astream", "run"),
    "config": ("RunConfig",),
    "documents": ("aread_documents", "read_documents"),
    "limits": ("RunLimits",),
    "result": ("RunResult",),
    "sandbox": (
        "CellResult", "Display", "ErrorInfo", "FileEntry", "Isolation", "Listing", "Outcome", "Sandbox",
        "SandboxConfig", "SandboxRuntime", "SyncSandbox", "as_data", "open_sandbox",
    ),
    "service": ("RemoteHandler",),
    "supervisor.prompts": ("Prompts",),
    "toolbox.toolbox": ("HostTool", "Tool"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_RENAMED = {"Engine": "SandboxRuntime"}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("supdist-engine")
        if name in _RENAMED:
            warn(f"supdist.engine.{name} is now {_RENAMED[name]}", DeprecationWarning, stacklevel=2)
            return globals().get(_RENAMED[name]) or __getattr__(_RENAMED[name])
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOME_OF.get(name, 'errors')}", __name__), name)
        globals()[name] = value
        return value
