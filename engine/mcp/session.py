"""Use a sandbox as an MCP session."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AsyncExitStack, contextmanager

from ...sandbox_image.mcp.session import Cell, FileRefused, Files, SessionError, SessionLost
from ..errors import SandboxError, SandboxFileError, SandboxLost, TaskError
from ..sandbox import CellResult, Sandbox, SandboxConfig, open_sandbox
from ..sandbox.cell_details import reason_of


class SandboxSession:
    """See ``Session`` and ``open_session``."""

    def __init__(self, sandbox: Sandbox, closing: AsyncExitStack) -> None:
        self._sandbox = sandbox
        self._closing = closing

    async def execute(self, code: str, timeout: float) -> Cell:  # noqa: ASYNC109 - the shim keeps it
        """See ``Session.execute``."""
        with _as_session_errors():
            return _cell(await self._sandbox.execute(code, timeout=timeout))

    async def reset(self) -> None:
        """See ``Session.reset``. Files are lost too."""
        with _as_session_errors():
            await self._sandbox.reset()

    async def put(self, path: str, data: bytes) -> None:
        """See ``Session.put``."""
        with _as_session_errors():
            await self._sandbox.put(path, data)

    async def get(self, path: str, most: int) -> bytes:
        """See ``Session.get``."""
        with _as_session_errors():
            return await self._sandbox.get(path, max_bytes=most)

    async def list(self, most: int) -> Files:
        """See ``Session.list``."""
        with _as_session_errors():
            found = await self._sandbox.list(most=most)
        return Files(found.files, found.more)

    async def close(self) -> None:
        """See ``Session.close``."""
        await self._closing.aclose()


async def open_session(config: SandboxConfig) -> SandboxSession:
    """Open a session with its own sandbox.

    Raises:
        SessionError: from the error of ``open_sandbox``.
    """
    with _as_session_errors():
        async with AsyncExitStack() as stack:
            sandbox = await stack.enter_async_context(open_sandbox(config))
            return SandboxSession(sandbox, stack.pop_all())


def _cell(result: CellResult) -> Cell:
    return Cell(
        outcome=result.outcome,
        stdout=result.stdout,
        stderr=result.stderr,
        display=[shown.data for shown in result.display],
        error=result.error,
        lost=result.state_lost,
        detail=reason_of(result),
    )


@contextmanager
def _as_session_errors() -> Generator[None]:
    try:
        yield
    except SandboxLost as error:
        raise SessionLost(str(error)) from error
    except SandboxFileError as error:
        raise FileRefused(str(error)) from error
    # ValueError: the code is too long.
    except (SandboxError, TaskError, ValueError) as error:
        raise SessionError(str(error)) from error
