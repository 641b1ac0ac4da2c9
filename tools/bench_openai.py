"""Compares the OpenAI handler with the bare SDK, at the fake server or at a real one.

::

    python -m supdist.tools.bench_openai --requests 100 --concurrency 32
    python -m supdist.tools.bench_openai --base-url http://127.0.0.1:8000/v1 --model NAME
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from statistics import median

from openai import AsyncOpenAI

from ..handlers import Message, OpenAIHandler
from .tables import Column, as_text, table, terminal_width

_ANSWER = "word " * 200

_COLUMNS: tuple[Column[tuple[str, str, str]], ...] = (
    Column("client", lambda row: row[0], left=True),
    Column("requests/s", lambda row: row[1]),
    Column("ms of work", lambda row: row[2]),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds of one request, on average: of the clock, and of this process's processor."""

    clock: float
    work: float


async def measure(ask: Callable[[], Awaitable[object]], requests: int, concurrency: int) -> Figures:
    """Send ``requests`` requests, ``concurrency`` at once."""
    slots = asyncio.Semaphore(concurrency)

    async def one() -> None:
        async with slots:
            await ask()

    clock, work = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one() for _ in range(requests)))
    return Figures((time.perf_counter() - clock) / requests, (time.process_time() - work) / requests)


@asynccontextmanager
async def fake_server(replies: int) -> AsyncGenerator[str]:
    """Start the fake server with ``replies`` replies, and yield its URL."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as script:
        script.write(f"{json.dumps(_ANSWER)}\n" * replies)
        script.flush()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"{__package__}.fake_openai", script.name, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                url = await process.stdout.readline()
            yield url.decode().strip()
        finally:
            process.terminate()
            await process.wait()


async def _main(options: argparse.Namespace) -> None:
    requests, concurrency, rounds = options.requests, options.concurrency, options.rounds
    model, most = options.model, options.max_tokens
    messages: list[Message] = [
        {"role": "user", "content": "Which sentence answers the question? " + "word " * options.words}
    ]
    server = nullcontext(options.base_url) if options.base_url else fake_server(2 * requests * (rounds + 1))
    async with (
        server as url,
        AsyncOpenAI(base_url=url, api_key="none") as client,
        OpenAIHandler(
            model, base_url=url, api_key="none", max_concurrency=concurrency, temperature=0, max_tokens=most
        ) as handler,
    ):
        clients: dict[str, Callable[[], Awaitable[object]]] = {
            "AsyncOpenAI": lambda: client.chat.completions.create(
                model=model,
                messages=messages,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # a Message has the fields that the SDK reads
                temperature=0,
                max_tokens=most,
            ),
            "OpenAIHandler": lambda: handler.chat(messages),
        }
        found: dict[str, list[Figures]] = {name: [] for name in clients}
        # In turns, and in alternating order, so that other load slows both.
        for round_ in range(rounds + 1):
            for name, ask in sorted(clients.items(), reverse=bool(round_ % 2)):
                found[name].append(await measure(ask, requests, concurrency))
    # The first round opens connections and imports.
    bare, ours = (all_[1:] for all_ in found.values())
    rows: list[tuple[str, str, str]] = []
    for name, figures in zip(found, (bare, ours), strict=True):
        clock, work = median(each.clock for each in figures), median(each.work for each in figures)
        rows.append((name, f"{1 / clock:.0f}", f"{work * 1e3:.2f}"))
    # Processor time shows the handler's cost best: the clock also counts the server's work.
    pairs = list(zip(bare, ours, strict=True))
    speed = median(one.clock / other.clock for one, other in pairs)
    work = median(other.work / one.work for one, other in pairs)
    rows.append(("ratio", f"{speed:.2f}", f"{work:.2f}"))
    print(as_text(table(_COLUMNS, rows), terminal_width()))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="bench_openai", description="Compare the OpenAI handler with the bare SDK."
    )
    parser.add_argument("--requests", type=int, default=100, help="in a round")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--base-url", help="of a server; the fake one by default")
    parser.add_argument("--model", default="m")
    parser.add_argument("--words", type=int, default=1000, help="in a prompt")
    parser.add_argument("--max-tokens", type=int, default=1024, help="in an answer")
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
