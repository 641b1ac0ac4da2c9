"""What test files of several areas share."""

from __future__ import annotations

import asyncio
import hashlib
import json
import selectors
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from supdist.engine import Sandbox, SandboxConfig
from supdist.engine.sandbox import CallError, WorkerCall
from supdist.handlers import Message, ScriptedHandler

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

Open = Callable[..., AbstractAsyncContextManager[Sandbox]]

SMALL: dict[str, Any] = {"timeout": 5.0, "grace": 0.3, "memory": "256MiB", "pids": 32, "scratch": "64MiB"}
"""Limits of a sandbox for a test."""

SMALL_CONFIG = SandboxConfig.model_validate({**SMALL, "memory": "512MiB"})
"""The sandbox of a whole run."""

BACKENDS: dict[str, dict[str, Any]] = {
    "process": {"backend": "process"},
    "docker": {"backend": "docker"},
    # runsc ignored control groups on the machine where this was written; "strict" would refuse that.
    "docker-runsc": {"backend": "docker", "runtime": "runsc", "isolation": "best_effort"},
}
"""The backends of the contract suite and the attacks: ``pytest --backend NAME``."""


class CountingSelector(selectors.DefaultSelector):
    """Counts how often its event loop polls."""

    polls = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.polls += 1
        return super().select(timeout)


class FakeClock:
    """A clock that moves only when a test sets ``now`` (seconds)."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class WordTokenizer(ScriptedHandler):
    """A handler whose tokens are words; counts the calls of its tokenizer."""

    counted = 0

    def count_tokens(self, messages: Sequence[Message]) -> int | None:
        self.counted += 1
        return sum(len(message["content"].split()) for message in messages)


async def echo(call: WorkerCall) -> list[str | CallError]:
    """Answer a worker call with its prompts in capitals."""
    return [prompt.upper() for prompt in call.prompts]


def upper_worker() -> ScriptedHandler:
    """Return a worker that answers a prompt in capitals."""
    return ScriptedHandler(lambda messages: messages[-1]["content"].upper())


def block(code: str) -> str:
    """Return a supervisor's message that holds this code."""
    return f"```repl\n{code}\n```"


def user_messages(*contents: str) -> list[Message]:
    """Return a conversation of user messages."""
    return [{"role": "user", "content": content} for content in contents]


def read_events(folder: Path, stream: str) -> list[dict[str, Any]]:
    """Return the events of one stream of a run log."""
    return [json.loads(line) for line in (folder / f"{stream}.jsonl").read_text().splitlines()]


async def run_pending(iterations: int = 20) -> None:
    """Let the event loop run what is ready, and what that makes ready."""
    for _ in range(iterations):
        await asyncio.sleep(0)


async def eventually(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Poll a condition until it holds.

    Raises:
        TimeoutError: it did not hold in time.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def syscall_number(name: str) -> int:
    """Return a system call's number on this processor; negative if it has none."""
    import pyseccomp  # pyright: ignore[reportMissingTypeStubs]  # the library has no types

    return pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)


_SCAN = """
import hashlib
head, wanted = {head!r}.encode(), {wanted!r}
found = 0
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
    for line in maps:
        span, rights = line.split()[:2]
        start, end = (int(edge, 16) for edge in span.split("-"))
        if "r" not in rights or "[v" in line: continue
        memory.seek(start)
        try: data = memory.read(end - start)
        except (OSError, OverflowError): continue
        place = data.find(head)
        while place >= 0:
            found += hashlib.sha256(data[place:place + {length}]).hexdigest() == wanted
            place = data.find(head, place + 1)
        del data
print("found" if found else "nothing")
"""


def scan_memory_for(text: str) -> str:
    """Return guest code that prints ``found`` if its memory holds the text, else ``nothing``."""
    # The code holds half of the text and a hash, so that it does not find itself.
    half, wanted = text[: len(text) // 2], hashlib.sha256(text.encode()).hexdigest()
    return _SCAN.format(head=half, wanted=wanted, length=len(text))
