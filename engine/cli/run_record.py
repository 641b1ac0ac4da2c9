"""The file ``.run`` in the folder of a run's log: who made it, whether the run goes on, and how it ended."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from ..private_files import PrivateFolder
from ..trust.seals import Seal

NAME = ".run"
_PURPOSE = "run folder"
_MOST_BYTES = 1 << 20
# Some network file systems.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the record says of the last run in a folder.

    Attributes:
        command: that started it, and the folder that it was typed in.
        reads_stdin: whether it read something there.
        is_own: whether this user's engine wrote it; else the rest proves nothing.
        has_ended: or a later command has told that it was killed.
    """

    command: Sequence[str] = ()
    folder: str = ""
    reads_stdin: bool = False
    is_own: bool = False
    has_ended: bool = False


@dataclass(slots=True)
class RunRecord:
    """The open and locked record. Its methods raise ``OSError``."""

    _descriptor: int
    _place: bytes
    _seal: Seal = field(default_factory=lambda: Seal.open(_PURPOSE))

    @classmethod
    def lock(cls, folder: PrivateFolder, *, is_required: bool = True) -> RunRecord:
        """Open or make the record.

        Args:
            is_required: raise ``OSError`` if the file system has no locks.

        Raises:
            BlockingIOError: a run goes on in this folder.
        """
        descriptor = folder.update(NAME)
        try:
            # The kernel frees it when the process ends, however it ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if is_required or error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        return cls(descriptor, os.fsencode(folder.path.name))

    def close(self) -> None:
        """Free the lock."""
        os.close(self._descriptor)

    def begin(self, command: Sequence[str], *, reads_stdin: bool = False) -> None:
        """Write that a run goes on."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"command": list(command), "folder": _working_folder(), "stdin": reads_stdin, "started": now}
        facts = json.dumps(about).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, facts + b"\n" + self._mark(facts) + b"\n", 0)

    def end(self) -> None:
        """Write that it has ended, or that its end was told."""
        size = os.fstat(self._descriptor).st_size
        os.pwrite(self._descriptor, b"ended\n", size)

    def read(self) -> RunFacts:
        """Read what stands there; anybody may have written it."""
        data = os.pread(self._descriptor, _MOST_BYTES, 0)
        line, _, rest = data.partition(b"\n")
        mark, _, end = rest.partition(b"\n")
        if not self._seal.is_own(mark, line, self._place):
            return RunFacts()
        facts = cast("dict[str, Any]", json.loads(line))
        # Another version of the engine may have written less.
        command, folder = facts.get("command", ()), facts.get("folder", "")
        return RunFacts(command, folder, facts.get("stdin", False), is_own=True, has_ended=bool(end))

    def _mark(self, facts: bytes) -> bytes:
        # With its name: a copy of the folder is not the folder that the engine made.
        return self._seal.mark(facts, self._place).encode()


def _working_folder() -> str:
    # It may have been removed.
    with suppress(OSError):
        return os.getcwd()
    return ""
