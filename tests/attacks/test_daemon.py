"""Group 18, where a container daemon makes the sandboxes: each of its answers fails, or never comes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import pytest
from attacks.lab import Arena, comes_true, outside
from docker_support import Relay

# What the engine asks for on the way to a sandbox, as its requests begin.
STEPS = {
    "version": rb"GET /version",
    "sweep": rb"GET /v1.41/containers/json",
    "image": rb"GET /v1.41/images/",
    "create": rb"POST /v1.41/containers/create",
    "attach": rb"POST /v1.41/containers/\w+/attach",
    "start": rb"POST /v1.41/containers/\w+/start",
    "inspect": rb"GET /v1.41/containers/\w{64}/json",
    "remove": rb"DELETE /v1.41/containers/",
}
REFUSAL = b'{"message":"no, says the daemon of the test"}'
ANSWER = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
)

Fault = Literal["refuses", "hangs", "hangs up"]


class FaultyDaemon(Relay):
    """The real one, but for one kind of request.

    Args:
        step: of ``STEPS``.
        fault: what becomes of it.
    """

    def __init__(self, step: str, fault: Fault) -> None:
        super().__init__()
        self._step = re.compile(STEPS[step])
        self._fault = fault
        self.met = 0

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncGenerator[str]:
        """Serve at a path of this machine; what DOCKER_HOST is to be."""
        self._server = await asyncio.start_unix_server(self._serve, path)
        try:
            yield f"unix://{path}"
        finally:
            await self.die()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes = b""
    ) -> None:
        """A connection carries one request: its first line tells which."""
        self._writers.add(writer)
        try:
            head = await reader.readuntil(b"\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        if not self._step.match(head):
            await super()._serve(reader, writer, head)
            return
        self.met += 1
        if self._fault == "hangs":
            return
        if self._fault == "refuses":
            writer.write(ANSWER % (len(REFUSAL), REFUSAL))
            await writer.drain()
        writer.close()


USE = """
import asyncio, json, os, sys, tempfile, time
from supdist.engine import SandboxError, SandboxUnavailable, open_sandbox
async def answer(call):
    print("busy", flush=True)
    return ["answer"] * len(call.prompts)
async def main():
    started = time.monotonic()
    try:
        async with open_sandbox(CONFIG, on_call=answer) as sandbox:
            said = (await sandbox.execute("print(1 + 1)")).stdout
    except SandboxUnavailable as error: said = [error.capability, error.remedy]
    except SandboxError as error: said = [type(error).__name__, str(error)]
    import psutil
    left = [p.name() for p in psutil.Process().children(recursive=True)]
    seconds = time.monotonic() - started
    print(json.dumps([said, seconds, left, os.listdir(tempfile.gettempdir()), os.getpid()]))
asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Use:
    """Return what another engine reports of a daemon, after how many seconds, and its ended process."""

    said: str | list[str]
    seconds: float
    engine: int


async def use(arena: Arena, folder: Path, step: str, fault: Fault) -> Use:
    """Have an engine use a daemon with a fault. On this machine nothing may be left of it."""
    temporary = folder / "temporary"
    temporary.mkdir(parents=True)
    daemon = FaultyDaemon(step, fault)
    async with daemon.listening(folder / "socket") as url:
        code = USE.replace("CONFIG", arena.machine.source)
        output = await outside(code, timeout=80, TMPDIR=str(temporary), DOCKER_HOST=url)
    said, seconds, left, files, engine = json.loads(output)
    assert daemon.met
    assert (left, files) == ([], [])
    return Use(said, seconds, engine)


async def sweep(arena: Arena, *engines: int) -> None:
    """Another engine removes what these could not."""
    code = (
        f"from supdist.engine import SyncSandbox\n"
        f"with SyncSandbox({arena.machine.source}) as s: s.execute('1')"
    )
    await outside(code)
    assert await comes_true(lambda: all(arena.machine.is_swept(engine, []) for engine in engines), 5)


@pytest.mark.parametrize("fault", ["refuses", "hangs up"])
@pytest.mark.parametrize(
    "step", [step for step in STEPS if step != "remove"], ids=lambda step: f"LC5-LC11-{step}"
)
async def test_a_daemon_that_fails_half_way_is_named_and_nothing_is_left(
    arena: Arena, tmp_path: Path, step: str, fault: Fault
) -> None:
    arena.most_seconds = 20
    used = await use(arena, tmp_path, step, fault)
    assert isinstance(used.said, list), "nothing weaker is taken instead"
    capability, remedy = used.said
    assert "daemon" in capability.lower()
    assert remedy
    assert used.seconds < 15
    assert arena.machine.is_swept(used.engine, []), "what was made half way is removed"


async def test_lc8_no_answer_that_does_not_come_is_waited_for_without_end(
    arena: Arena, tmp_path: Path
) -> None:
    """Together, since each waits for the engine's own deadline."""
    arena.most_seconds = 90
    uses = await asyncio.gather(*(use(arena, tmp_path / step, step, "hangs") for step in STEPS))
    for step, used in zip(STEPS, uses, strict=True):
        if step == "remove":
            assert used.said == "2\n", "the sandbox was there"
        else:
            assert "daemon" in used.said[0].lower(), (step, used.said)
        assert used.seconds < 65, step
    await sweep(arena, *(used.engine for used in uses))


async def test_lc8_a_daemon_that_is_gone_takes_nobody_along(arena: Arena, tmp_path: Path) -> None:
    """In a cell: the engine reports it within its deadlines, and the guest ends with its stream."""
    code = USE.replace("print(1 + 1)", "worker(''); import time; time.sleep(600)").replace(
        "CONFIG", arena.machine.source
    )
    daemon = FaultyDaemon("remove", "refuses")
    async with daemon.listening(tmp_path / "socket") as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, env={**os.environ, "DOCKER_HOST": url}
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"busy\n"
        await daemon.die()
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    said, _, left, _, engine = json.loads(output)
    assert said[0] == "SandboxLost"
    assert left == []
    assert await comes_true(lambda: not any(map(psutil.pid_exists, arena.machine.inits(engine))), 5)
    await sweep(arena, engine)
