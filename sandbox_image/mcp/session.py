"""The interface of a Python session with a folder of files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from .. import protocol
from ..protocol import ErrorInfo, FileCode, FileEntry, Outcome

FILE_PROBLEMS: Mapping[FileCode, str] = {
    "not_found": "there is no such file",
    "not_regular": "it is no regular file, or a link is on the way to it",
    "outside": "a path must be relative and stay in the folder",
    "too_large": "it is too large",
    "io": "it cannot be read or written (disk full, or name not allowed)",
}


class SessionError(Exception):
    """A call failed; the text tells the client why."""


class SessionLost(SessionError):
    """The interpreter is gone; ``reset`` starts a new one."""


class FileRefused(SessionError):
    """A file could not be written or read."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The result of a cell."""

    outcome: Outcome
    stdout: str
    stderr: str
    # For each displayed value, its forms by MIME type.
    display: Sequence[Mapping[str, str | bytes]]
    error: ErrorInfo | None
    # Whether the interpreter is gone, and why.
    lost: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Files:
    """A list of regular files; ``more`` says that it is cut."""

    entries: Sequence[FileEntry]
    more: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """The limits and descriptions of one server.

    Attributes:
        timeout: seconds for each cell.
        output_limit: characters of each text.
        file_limit: bytes of a file.
    """

    timeout: float = 120.0
    output_limit: int = 30_000
    file_limit: int = 16 << 20
    # As the code sees it.
    folder: str = protocol.WORK
    # Whether files outlive the interpreter.
    keeps_files: bool = False
    # A sentence for models.
    packages: str = "The standard library can be imported."
    version: str = ""


class Session(Protocol):
    """One interpreter."""

    # Calls come one at a time. Only `close` may come during another.

    async def execute(self, code: str, timeout: float) -> Cell:  # noqa: ASYNC109 - the runner enforces it
        """Run code. When cancelled, interrupt it and wait for its end.

        Raises:
            SessionLost: the interpreter is gone, and not by this code.
            SessionError: the code cannot be run.
        """
        ...

    async def reset(self) -> None:
        """Replace the interpreter and all its processes.

        Raises:
            SessionError: the new one does not start.
        """
        ...

    async def put(self, path: str, data: bytes) -> None:
        """Write a file below the folder.

        Raises:
            FileRefused, SessionLost
        """
        ...

    async def get(self, path: str, most: int) -> bytes:
        """Read a file of at most ``most`` bytes.

        Raises:
            FileRefused, SessionLost
        """
        ...

    async def list(self, most: int) -> Files:
        """List at most ``most`` files.

        Raises:
            FileRefused, SessionLost
        """
        ...

    async def close(self) -> None:
        """End the session and wait for its end."""
        ...
