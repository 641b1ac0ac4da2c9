"""Times a sandbox in a container beside ``docker run``, in milliseconds.

``python -m supdist.tools.bench_docker [--runtime runsc]``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable

from ..engine import SandboxConfig, SandboxRuntime, open_sandbox
from ..sandbox_image.image import default_tag
from .tables import Column, as_text, table, terminal_width

_CONTEXT = "0123456789" * 1_000_000


def docker_run(image: str, runtime: str | None) -> float:
    """Return the seconds from the start of the command to its output."""
    chosen = ["--runtime", runtime] if runtime else []
    command = ["docker", "run", "--rm", "--network", "none", *chosen, image, "python", "-c", "print(1)"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"1\n":
            raise RuntimeError(
                f"docker run of {image} did not print 1; build it with supdist-engine image build"
            )
        return time.perf_counter() - started


async def first_output(config: SandboxConfig, context: object = "") -> float:
    """Return the seconds until a new sandbox has printed something."""
    started = time.perf_counter()
    async with open_sandbox(config, context=context) as sandbox:
        result = await sandbox.execute("print(1)")
        took = time.perf_counter() - started
    if result.stdout != "1\n":
        raise RuntimeError(f"the cell ended with {result.outcome}")
    return took


async def cells(config: SandboxConfig, count: int) -> list[float]:
    """Return the seconds of each cell."""
    times: list[float] = []
    async with open_sandbox(config) as sandbox:
        for _ in range(count):
            started = time.perf_counter()
            await sandbox.execute("1 + 1")
            times.append(time.perf_counter() - started)
    return times


async def measure(image: str, runtime: str | None, trials: int) -> dict[str, float]:
    """Return the medians in milliseconds."""
    fresh = SandboxConfig(backend="docker", image=image, runtime=runtime)
    warm = fresh.model_copy(update={"warm": 2})
    ways: dict[str, Callable[[], Awaitable[float]]] = {
        "docker run, python -c": lambda: asyncio.to_thread(docker_run, image, runtime),
        "open to output": lambda: first_output(fresh),
        "open to output, 10 MB context": lambda: first_output(fresh, _CONTEXT),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    async with SandboxRuntime(fresh):
        # In turn, so that a machine that changes its pace changes it for all.
        for _ in range(trials):
            for name, way in ways.items():
                times[name].append(await way())
        times["cell"] = await cells(fresh, 20 * trials)
    async with SandboxRuntime(warm):
        times["open to output, from the pool"] = []
        for _ in range(trials):
            # Until the pool is full again.
            await asyncio.sleep(1.5)
            times["open to output, from the pool"].append(await first_output(warm))
    return {name: statistics.median(found) * 1000 for name, found in times.items()}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="Time a sandbox in a container.")
    parser.add_argument("--image", default=default_tag())
    parser.add_argument("--runtime")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.image, options.runtime, options.trials))
    if options.json:
        print(json.dumps(figures))
        return
    bare = figures["docker run, python -c"]
    columns: tuple[Column[tuple[str, float]], ...] = (
        Column("", lambda row: row[0], left=True),
        Column("ms", lambda row: f"{row[1]:.1f}"),
        Column("of docker run", lambda row: f"{row[1] / bare:.3f}"),
    )
    print(as_text(table(columns, list(figures.items())), terminal_width()))


if __name__ == "__main__":
    main()
