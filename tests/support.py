"""What several test modules share."""

from __future__ import annotations

import contextlib
import hashlib
import os
import selectors
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import psutil

from supdist.engine import Sandbox
from supdist.engine.sandbox import CallError, WorkerCall

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

Open = Callable[..., AbstractAsyncContextManager[Sandbox]]

SMALL: dict[str, Any] = {"timeout": 5.0, "grace": 0.3, "memory": "256MiB", "pids": 32, "scratch": "64MiB"}


KEYS = (
    "TOGETHER_API_KEY", "OPENAI_API_KEY", "BASE_URL", "OPENAI_BASE_URL", "SUPERVISOR_MODEL", "WORKER_MODEL", "JUDGE_MODEL",
)  # fmt: skip
"""Variables that name endpoints and models: a test without a key must not see the user's."""


def pieces_from(controller: int) -> Iterator[bytes]:
    """Yield what a pseudo-terminal shows, until nobody holds its other end."""
    with contextlib.suppress(OSError):
        while piece := os.read(controller, 65536):
            yield piece


BACKENDS: dict[str, dict[str, Any]] = {
    "process": {"backend": "process"},
    "docker": {"backend": "docker"},
    # best_effort: where this was made, runsc ignores control groups, and the default level refuses that.
    "docker-runsc": {"backend": "docker", "runtime": "runsc", "isolation": "best_effort"},
}
"""What the contract suite and the attacks can be run over: ``pytest --backend NAME``."""


class Turns(selectors.DefaultSelector):
    """Counts how often its event loop looks for work."""

    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        return super().select(timeout)


async def echo(call: WorkerCall) -> list[str | CallError]:
    """A worker that shouts."""
    return [prompt.upper() for prompt in call.prompts]


def block(code: str) -> str:
    """A supervisor's message that holds this code alone."""
    return f"```repl\n{code}\n```"


def heed_interrupts() -> None:
    """For a child that is to be interrupted: whoever runs the tests in the background has it ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes_named(name: str) -> set[int]:
    """Processes below this one with that short name: supdist-zygote, supdist-shim (supdist-spare, before it has a user), supdist-init."""
    return {child.pid for child in _below() if _name(child) == name}


def of_running_guests(name: str) -> set[int]:
    """The same, of sandboxes in use alone: there is mostly one more that waits for its user."""
    guests = [child for child in _below() if _name(child) == "python"]
    return {parent.pid for guest in guests for parent in guest.parents() if _name(parent) == name}


def _below() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""


def descendants(pid: int) -> set[int]:
    """The processes below one, at this moment."""
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def zygotes() -> set[int]:
    """This process's zygotes. A shim bears its parent's name for a moment; it is no direct child."""
    return {child.pid for child in psutil.Process().children() if _name(child) == "supdist-zygote"}


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
    """Code for a guest that prints ``found`` where its memory holds the text, else ``nothing``.

    It knows the first half and a hash of the whole, so that it does not find itself.
    """
    half, wanted = text[: len(text) // 2], hashlib.sha256(text.encode()).hexdigest()
    return _SCAN.format(head=half, wanted=wanted, length=len(text))


def cgroups_of(zygote: int) -> list[Path]:
    """Control groups that bear a zygote's number, wherever they are."""
    folders = (Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup"))  # one may vanish on the way
    return [folder for folder in folders if folder.name.startswith(f"supdist-{zygote}-")]
