"""An engine with busy sandboxes: ``engine.py OPTIONS``. Ends at a line on stdin.

It prints a list of how each operation ended, and then how a last sandbox does.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any

from supdist.engine import (
    EngineError,
    Sandbox,
    SandboxConfig,
    SandboxLost,
    open_sandbox,
)

CELLS = (
    "print(sum(range(10**5)))",
    "import time; time.sleep(0.2)",
    "import subprocess; print(subprocess.run(['sleep', '0.1']).returncode)",
    "print('x' * 200_000)",
    "block = bytearray(400 << 20)",
    "while True: pass",
    "1/0",
    "import os; os.kill(os.getpid(), 9)",
    "open('file', 'w').write('y' * 10**6)",
    "import os; [os.fork() or os._exit(0) for _ in range(5)]",
)


class Ends:
    """Counts how operations ended.

    Args:
        most_seconds: no operation may take longer.
    """

    def __init__(self, most_seconds: float) -> None:
        self.counts: Counter[str] = Counter()
        self._most_seconds = most_seconds

    async def of(self, work: Any) -> bool:
        """Await one operation; return whether the sandbox can go on."""
        started = time.monotonic()
        try:
            result = await work
            self.counts[str(getattr(getattr(result, "outcome", None), "value", "done"))] += 1
        except SandboxLost:
            self.counts["SandboxLost"] += 1
            return False
        except EngineError as error:
            self.counts[type(error).__name__] += 1
        if time.monotonic() - started > self._most_seconds:
            self.counts[f"LATE {time.monotonic() - started:.0f} s"] += 1
        return True


async def use(sandbox: Sandbox, chance: random.Random, ends: Ends, stopped: asyncio.Event) -> None:
    """Use one sandbox until ``stopped``."""
    while not stopped.is_set():
        match chance.randrange(10):
            case 0:
                going = await ends.of(sandbox.put("a/b", b"x" * chance.randrange(1 << 20)))
            case 1:
                going = await ends.of(sandbox.get("a/b"))
            case 2:
                going = await ends.of(sandbox.reset())
            case _:
                going = await ends.of(sandbox.execute(chance.choice(CELLS), timeout=1.0))
        if not going and not await ends.of(sandbox.reset()):
            return


async def keep_using(config: SandboxConfig, seed: str, ends: Ends, stopped: asyncio.Event) -> None:
    """Open one sandbox after another."""
    chance = random.Random(seed)
    while not stopped.is_set():
        try:
            async with open_sandbox(config, context="c" * chance.randrange(1 << 20)) as sandbox:
                await use(sandbox, chance, ends, stopped)
        except EngineError as error:
            ends.counts[f"open: {type(error).__name__}"] += 1
            await asyncio.sleep(0.05)


async def last(config: SandboxConfig) -> str:
    """Return what the next sandbox prints, or the error."""
    try:
        async with open_sandbox(config) as sandbox:
            return (await sandbox.execute("print(6 * 7)")).stdout.strip()
    except EngineError as error:
        return f"{type(error).__name__}: {error}"


async def main(options: dict[str, Any]) -> None:
    """Run until told to end."""
    config = SandboxConfig.model_validate(options["config"])
    ends, stopped = Ends(options["most_seconds"]), asyncio.Event()
    seeds = [f"{options['seed']}:{number}" for number in range(options["sandboxes"])]
    users = [asyncio.ensure_future(keep_using(config, seed, ends, stopped)) for seed in seeds]
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_reader(sys.stdin)
        stopped.set()

    loop.add_reader(sys.stdin, stop)
    await asyncio.gather(stopped.wait(), *users)
    print(json.dumps({"ends": ends.counts, "next": await last(config)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
