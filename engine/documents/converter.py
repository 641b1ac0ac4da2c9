"""Convert documents to text in our own sandbox.

Parsers of foreign files are often attacked. So each file gets a locked-down process of its own, with limits
on memory, time and output, and without network, keys or files of the host.
"""

from __future__ import annotations

import importlib.util
from functools import cached_property
from pathlib import Path

from ...handlers.slices import in_slices
from ..errors import SandboxFileError, SandboxLost, TaskError
from ..sandbox import CellResult, Outcome, SandboxConfig, open_sandbox
from ..sandbox.cell_details import reason_of
from ..slices import decode
from .kinds import Kind

SECONDS = 120.0
MEMORY = 1 << 30
# The text of one document.
MOST_TEXT = 64 << 20
# The document itself.
MOST_BYTES = 256 << 20

INSTALL = "pip install 'supdist-engine[documents]'"
_LIBRARIES = ("bs4", "cobble", "et_xmlfile", "mammoth", "markdownify", "openpyxl", "pypdfium2", "soupsieve")
_PROGRAM = Path(__file__).with_name("conversion.py")
_WORK_FILE = "text"
_MOST_REASON = 2000


class Converter:
    """Converts documents, each in a new sandbox; inside of ``keep_backends`` the next costs only a fork."""

    def __init__(self, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._seconds = seconds
        self._memory = memory

    @cached_property
    def _config(self) -> SandboxConfig:
        return SandboxConfig(
            packages=_libraries(),
            memory=self._memory,
            timeout=self._seconds,
            scratch=3 * MOST_TEXT,
            pids=16,
        )

    async def convert(self, kind: Kind, data: bytes) -> str:
        """Return the text of a document.

        Raises:
            TaskError: it has no text, is damaged, or takes too much; or the libraries are not installed.
            SandboxUnavailable: no sandbox can be had here.
        """
        if len(data) > MOST_BYTES:
            raise TaskError(f"it is larger than {MOST_BYTES >> 20} MiB; split it, or convert it to text")
        code = f"{_PROGRAM.read_text('utf-8')}\nconvert({kind.value!r}, context, {MOST_TEXT})"
        try:
            async with open_sandbox(self._config, context=data) as sandbox:
                result = await sandbox.execute(code, timeout=self._seconds)
                self._check(result)
                found = await sandbox.get(_WORK_FILE, max_bytes=MOST_TEXT)
        except (SandboxLost, SandboxFileError) as error:
            raise TaskError(f"its conversion failed: {error}") from error
        return await in_slices(decode([found], "replace"))

    def _check(self, result: CellResult) -> None:
        match result.outcome:
            case Outcome.OK:
                return
            case Outcome.TIMEOUT:
                raise TaskError(
                    f"its conversion took more than {self._seconds:g} s; split it, or convert it to text"
                )
            case Outcome.OOM:
                raise TaskError(self._too_much())
            case Outcome.USER_ERROR if result.error is not None:
                if result.error.type == "MemoryError":
                    raise TaskError(self._too_much())
                # A document may control its parser: the message is only words.
                raise TaskError(result.error.message[:_MOST_REASON])
            case Outcome.CRASHED:
                raise TaskError(f"its parser crashed ({result.detail}); it may be damaged, or a bomb")
            case _:
                raise TaskError(f"its conversion ended with {result.outcome.value}: {reason_of(result)}")

    def _too_much(self) -> str:
        return f"its conversion took more than {self._memory >> 20} MiB of memory; it may be a bomb"


def _libraries() -> str:
    folders: dict[Path, str] = {}
    for name in _LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise TaskError(f"documents need more libraries ({name} is missing): {INSTALL}")
        folders[Path(spec.origin).parent.parent] = name
    if len(folders) > 1:
        places = " and ".join(f"{name} in {folder}" for folder, name in folders.items())
        raise TaskError(f"the libraries for documents must be in one folder, and not {places}: {INSTALL}")
    return str(next(iter(folders)))
