"""What the server serves: a Python session with a folder of files, whatever stands behind it."""

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
    "io": "it cannot be read or written (no room, a name that is not allowed)",
}


class SessionError(Exception):
    """The session cannot do what was asked. The text is for the client and says why."""


class SessionLost(SessionError):
    """The interpreter is gone, and its variables with it; ``reset`` begins a new one."""


class FileRefused(SessionError):
    """A file could not be put or got."""


@dataclass(frozen=True, slots=True)
class Cell:
    """How a piece of code ended and what it left.

    ``display`` has a mapping from mime types to text or bytes for everything that was shown: values, images.
    ``lost`` tells that the interpreter is gone; ``detail`` how that came about.
    """

    outcome: Outcome
    stdout: str
    stderr: str
    display: Sequence[Mapping[str, str | bytes]]
    error: ErrorInfo | None
    lost: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Files:
    """Regular files by their paths below the folder; ``more`` tells that there are others."""

    entries: Sequence[FileEntry]
    more: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """What one server allows, and what it tells of itself.

    Attributes:
        timeout: seconds for a call of ``python``, by default and at most.
        output_limit: characters of a text that a call of ``python`` shows.
        file_limit: bytes of a file that is put or got.
        folder: the folder of files, as the code sees it.
        keeps_files: whether it outlives the interpreter.
        packages: a sentence about what can be imported.
        version: of the server.
    """

    timeout: float = 120.0
    output_limit: int = 30_000
    file_limit: int = 16 << 20
    folder: str = protocol.WORK
    keeps_files: bool = False
    packages: str = "The standard library can be imported."
    version: str = ""


class Session(Protocol):
    """One interpreter. Its user asks for one thing at a time, but may close it at any moment."""

    async def execute(self, code: str, timeout: float) -> Cell:  # noqa: ASYNC109 - whoever runs the code keeps it
        """Run code in the session's namespace. When cancelled, it interrupts the code and waits until it has ended.

        Raises:
            SessionLost: the interpreter was gone before, or went for a reason that is not the code's.
            SessionError: the code cannot be run.
        """
        ...

    async def reset(self) -> None:
        """Begin a new interpreter, with nothing of the old one's variables and processes.

        Raises:
            SessionError: there can be none.
        """
        ...

    async def put(self, path: str, data: bytes) -> None:
        """Write a file below the folder.

        Raises:
            FileRefused, SessionLost
        """
        ...

    async def get(self, path: str, most: int) -> bytes:
        """Read a file of at most ``most`` bytes below the folder.

        Raises:
            FileRefused, SessionLost
        """
        ...

    async def list(self, most: int) -> Files:
        """Name at most ``most`` files below the folder.

        Raises:
            FileRefused, SessionLost
        """
        ...

    async def close(self) -> None:
        """End it, and wait until nothing is left of it."""
        ...
