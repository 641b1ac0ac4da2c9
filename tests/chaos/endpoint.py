"""A model endpoint that fails at random: ``endpoint.py REQUESTS SEED RATE PORT``. Prints its base URL.

It appends each prompt that it is asked to the file REQUESTS, one JSON text a line.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

from supdist.tools.testing.fake_openai import FakeOpenAI, Request
from supdist.tools.testing.replies import Drop, Malformed, Reply, Status, Text

HANGS = 1000.0


def prompt(request: Request) -> str:
    """Return what the worker is asked."""
    return request.body["messages"][-1]["content"]


class Script:
    """Answers in capitals; at ``rate`` (0 to 1) something goes wrong."""

    def __init__(self, requests: Path, seed: str, rate: float) -> None:
        self._requests = requests
        self._random = random.Random(seed)
        self._rate = rate

    def __call__(self, request: Request) -> Reply:
        """Reply to one request."""
        with self._requests.open("a") as file:
            file.write(json.dumps(prompt(request)) + "\n")
        good = Text(prompt(request).upper())
        if self._random.random() >= self._rate:
            return good
        faults: tuple[Reply, ...] = (
            Status(429, {"Retry-After": "0"}),
            Status(500),
            Status(401),
            Drop(),
            Drop(30),
            Malformed(b"\x00garbage"),
            Text(good.text, delay=0.5),
            Text(good.text, delay=HANGS),
        )
        return self._random.choice(faults)


async def main(requests: str, seed: str, rate: str, port: str) -> None:
    """Serve until killed."""
    async with FakeOpenAI(Script(Path(requests), seed, float(rate)), port=int(port)) as server:
        print(server.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
