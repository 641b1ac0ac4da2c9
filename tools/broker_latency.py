"""Measures calls through a model server in another process, in milliseconds.

::

    python -m supdist.tools.broker_latency --calls 1000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from ..engine import RemoteHandler
from ..engine.service import make_client_keys, make_server_keys
from ..handlers import ModelHandler, ScriptedHandler
from .tables import Column, as_text, table, terminal_width

_WARM_UP = 20
_PROMPT = "word " * 1000

# A connection, and the milliseconds of its calls, ascending.
_Row = tuple[str, list[float]]
_COLUMNS: tuple[Column[_Row], ...] = (
    Column("connection", lambda row: row[0], left=True),
    Column("median ms", lambda row: f"{statistics.median(row[1]):.3f}"),
    Column("99 % ms", lambda row: f"{row[1][len(row[1]) * 99 // 100]:.3f}"),
)


@asynccontextmanager
async def _model_server(folder: Path, bind: str, *keys: str) -> AsyncGenerator[str]:
    command = [sys.executable, "-m", "supdist.engine", "broker", "models.json", "--bind", bind, *keys]
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=PIPE, stderr=DEVNULL)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            address = (await process.stdout.readline()).decode().strip()
        yield address
    finally:
        process.terminate()
        await process.communicate()


async def _measure(name: str, handler: ModelHandler, calls: int) -> _Row:
    # One call after another; the model answers at once, so the service's own cost is measured.
    times: list[float] = []
    async with handler:
        for _ in range(_WARM_UP + calls):
            started = time.perf_counter()
            await handler.chat_stream([{"role": "user", "content": _PROMPT}], lambda _: None)
            times.append((time.perf_counter() - started) * 1000)
    # The first calls open connections.
    return name, sorted(times[_WARM_UP:])


async def _main(calls: int) -> None:
    replies = ["yes"] * (calls + _WARM_UP)
    rows = [await _measure("direct", ScriptedHandler(replies), calls)]
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="supdist-")))
        spec = {"worker": {"handler": "scripted", "replies": replies}}
        (folder / "models.json").write_text(json.dumps(spec))
        make_server_keys(folder / "keys")
        client = make_client_keys(folder / "keys", "client")
        async with _model_server(folder, f"ipc://{folder}/broker") as address:
            rows.append(await _measure("ipc", RemoteHandler("worker", address), calls))
        async with _model_server(folder, "tcp://127.0.0.1:*", "--curve-keys", "keys") as address:
            remote = RemoteHandler("worker", address, curve_keys=client)
            rows.append(await _measure("tcp + CURVE", remote, calls))
    print(as_text(table(_COLUMNS, rows), terminal_width()))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="broker_latency", description="Measure calls through a broker service."
    )
    parser.add_argument("--calls", type=int, default=1000, help="of each kind")
    asyncio.run(_main(parser.parse_args().calls))


if __name__ == "__main__":
    main()
