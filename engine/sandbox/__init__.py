"""Sandboxes: a persistent Python interpreter in isolation.

Example::

    async with open_sandbox(SandboxConfig(memory="512MiB"), context=text) as sandbox:
        result = await sandbox.execute("print(len(context))", timeout=5)
"""

from __future__ import annotations

from .config import (
    CallError,
    CellResult,
    Display,
    ErrorInfo,
    FileEntry,
    Isolation,
    Listing,
    OnCall,
    Outcome,
    SandboxConfig,
    Usage,
    WorkerCall,
    as_data,
)
from .factory import SandboxRuntime, open_sandbox
from .sandbox import Sandbox
from .sync_sandbox import SyncSandbox

__all__ = [
    "CallError",
    "CellResult",
    "Display",
    "ErrorInfo",
    "FileEntry",
    "Isolation",
    "Listing",
    "OnCall",
    "Outcome",
    "Sandbox",
    "SandboxConfig",
    "SandboxRuntime",
    "SyncSandbox",
    "Usage",
    "WorkerCall",
    "as_data",
    "open_sandbox",
]
