"""The watch that is kept during every attack."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest
from attacks.catalogue import NOT_HERE, left_out
from attacks.lab import Arena, Held, settled
from attacks.machine import MACHINES, Machine
from support import Open

from supdist.engine import Sandbox, SandboxConfig, SandboxRuntime, open_sandbox

_HERE = Path(__file__).parent
_LAG_SECONDS = 0.25
_HANG_SECONDS = 240  # a hundred containers at once may take more than 90 where others use the machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-cases", action="store_true", help="the attacks that do not apply to the backend, too"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a backend that the catalogue or the machines do not know."""
    # Here, before the workers of xdist start: in them it would be an internal error.
    backend = str(config.getoption("--backend"))
    for table, where in ((NOT_HERE, "NOT_HERE in catalogue.py"), (MACHINES, "MACHINES in machine.py")):
        if backend not in table:
            raise pytest.UsageError(f"--backend {backend}: tests/attacks does not know it; add it to {where}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Set the time limit; leave out what does not apply to the backend (``catalogue.NOT_HERE``)."""
    for item in items:
        if item.path.parent == _HERE:
            item.add_marker(pytest.mark.timeout(_HANG_SECONDS))
    if config.getoption("--all-cases"):
        return
    backend = str(config.getoption("--backend"))
    without = [
        item for item in items if item.path.parent == _HERE and left_out(backend, item.nodeid) is not None
    ]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in without]


@pytest.fixture(scope="session")
def canary() -> str:
    """A value that is nowhere but where a test put it."""
    return "canary" + secrets.token_hex(16)


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest, backend: dict[str, Any]) -> Generator[Machine]:
    """Where the sandboxes of the chosen backend are."""
    machine = MACHINES[str(request.config.getoption("--backend"))](backend)
    yield machine
    machine.close()


@pytest.fixture(scope="module")
async def engine(
    anyio_backend: str, backend: dict[str, Any], canary: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[SandboxRuntime]:
    """Start an engine with secrets in its environment; its temporary folder must be empty at the end."""
    tmp_path_factory.getbasetemp()
    before, folder = tempfile.tempdir, tempfile.mkdtemp(prefix="sa-")
    tempfile.tempdir = folder
    os.environ["CANARY_API_KEY"] = canary
    try:
        async with SandboxRuntime(SandboxConfig.model_validate(backend)) as engine:
            yield engine
        assert os.listdir(folder) == []
    finally:
        del os.environ["CANARY_API_KEY"]
        tempfile.tempdir = before
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def neighbour(engine: SandboxRuntime, limits: SandboxConfig) -> AsyncGenerator[Sandbox]:
    """Another sandbox of the same engine, which no attack may reach or slow."""
    async with open_sandbox(limits) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
async def before(neighbour: Sandbox, limits: SandboxConfig, machine: Machine) -> list[Held]:
    """What is held when the engine and the neighbour stand and nothing else; after a fault, what it left."""
    for _ in range(2):
        async with open_sandbox(limits) as sandbox:
            await sandbox.execute("print(1)")
    return [await settled(machine)]


_TIMES = pytest.StashKey[tuple[float, float]]()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Note when the attack began and ended; end the process, with a traceback, if nothing else can."""
    started = time.monotonic()
    faulthandler.dump_traceback_later(_HANG_SECONDS + 30, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        pyfuncitem.stash[_TIMES] = (started, time.monotonic())


@pytest.fixture(autouse=True)
async def arena(
    request: pytest.FixtureRequest, small: Open, machine: Machine, neighbour: Sandbox, before: list[Held]
) -> AsyncGenerator[Arena]:
    """Watch every attack: loop, neighbour, wall time, memory. Afterwards nothing of it may be left."""
    arena = Arena(small, machine)
    tasks = [asyncio.create_task(arena.beat()), asyncio.create_task(arena.ask(neighbour))]
    yield arena
    arena.over = True
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    started, ended = request.node.stash[_TIMES]
    lags = [late for due, now, late in arena.lags if due >= started and now <= ended]
    assert max(lags, default=0.0) < _LAG_SECONDS, "the engine's loop was held up"
    assert ended - started <= arena.most_seconds + arena.starts
    assert arena.growth <= arena.most_growth
    assert arena.slowest_answer < 2.0
    deadline = time.monotonic() + 3
    while (
        more := (await asyncio.to_thread(Held.now, machine)).more_than(before[-1])
    ) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    if more:
        before.append(await settled(machine))  # the next attack is not blamed for it
    assert more == {}, "left over"
