"""Containers with their folders, and a pool of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence

from ...sandbox_image import protocol
from ..errors import SandboxError, TaskError
from .config import SandboxConfig
from .containers import Container, Daemon, Image


class PreparedContainer:
    """A container and its folder; None if the daemon is remote."""

    def __init__(self, container: Container, folder: str | None) -> None:
        self.container = container
        self.folder = folder

    @property
    def context_file(self) -> str:
        """The path of the guest's context."""
        assert self.folder is not None
        return os.path.join(self.folder, os.path.basename(protocol.CONTEXT_FILE))

    def hide_context(self) -> None:
        """Remove the context file after the guest has read it."""
        # Other guests may have a link to the same file, and could see a lock that this guest puts on it.
        if self.folder is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.context_file)

    def remove(self, daemon: Daemon) -> None:
        """Remove both. Blocks."""
        self.container.stream.close()
        daemon.remove(self.container.id)
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def prepare_container(
    daemon: Daemon,
    parent: str,
    config: SandboxConfig,
    image: Image,
    packages: Sequence[tuple[str, str]],
) -> PreparedContainer:
    """Start a container with a folder below ``parent``. Blocks.

    Raises:
        SandboxUnavailable: the daemon reported an error.
    """
    folder = tempfile.mkdtemp(dir=parent) if daemon.shares_files else None
    try:
        if folder is not None:
            os.chmod(folder, 0o755)  # noqa: S103 - the guest is another user; on the host, its parent is closed
        return PreparedContainer(daemon.start(image, config, folder, packages), folder)
    except BaseException:
        if folder is not None:
            os.rmdir(folder)
        raise


class Pool:
    """Running containers that no sandbox has used."""

    def __init__(
        self,
        make: Callable[[], Awaitable[PreparedContainer]],
        remove: Callable[[PreparedContainer], object],
        size: int,
    ) -> None:
        self._make = make
        self._remove = remove
        self._size = size
        self._ready: list[PreparedContainer] = []
        self._making: set[asyncio.Task[None]] = set()
        self._waiting = 0

    async def take(self) -> PreparedContainer | None:
        """Return one that is alive, or wait for one; None if others wait for all in the making."""
        prepared = None
        while prepared is None:
            while self._ready and prepared is None:
                prepared = self._ready.pop(0)
                if not prepared.container.is_alive:
                    self._remove(prepared)
                    prepared = None
            if prepared is None:
                # The caller then makes its own.
                if self._waiting >= len(self._making):
                    break
                self._waiting += 1
                try:
                    await asyncio.wait(list(self._making), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self._waiting -= 1
        self.fill()
        return prepared

    def fill(self) -> None:
        """Start to make missing ones."""
        for _ in range(self._size - len(self._ready) - len(self._making)):
            task = asyncio.ensure_future(self._add())
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    async def close(self) -> None:
        """Start to remove all of them."""
        for task in list(self._making):
            task.cancel()
        if self._making:
            await asyncio.wait(list(self._making))
        for prepared in self._ready:
            self._remove(prepared)
        self._ready.clear()

    async def _add(self) -> None:
        try:
            self._ready.append(await self._make())
        except (SandboxError, TaskError):
            # The next sandbox makes its own container, and raises the error.
            return
