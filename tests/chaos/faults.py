"""The faults, as data, and how each is chosen and made."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import psutil

PARTS = {
    "zygote": "supdist-zygote",
    "shim": "supdist-shim",
    "spare": "supdist-spare",
    "init": "supdist-init",
    "repl": "python",
}
"""Short names of the engine's processes."""

OPENING = "opening engine"
"""The engine while it starts its first process."""

_PARENTS = (
    ("zygote", "engine"),
    ("shim", "zygote"),
    ("spare", "zygote"),
    ("shim", "engine"),
    ("init", "shim"),
    ("repl", "init"),
    ("repl", "engine"),
)
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "STOP": signal.SIGSTOP}
ENDINGS = {
    "KILL": signal.SIGKILL,
    "TERM": signal.SIGTERM,
    "INT": signal.SIGINT,
    "HUP": signal.SIGHUP,
    "STOP": signal.SIGSTOP,
}
LIMITS = {"files": resource.RLIMIT_NOFILE, "memory": resource.RLIMIT_AS, "file size": resource.RLIMIT_FSIZE}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        kind: signal, limit, disk or endpoint.
        target: a part of the engine, a limit or a folder.
        value: a signal's name; a size, of a disk in KiB; the share of requests that fail.
        at: seconds after the target was there; 0 for what is so from the start.
        seconds: how long a process is stopped; None for ever.
    """

    kind: str
    target: str
    value: str
    at: float = 0.0
    seconds: float | None = None

    def __str__(self) -> str:
        if self.kind != "signal":
            return f"{self.name} {self.value}"
        ends = f" for {self.seconds:.2f} s" if self.seconds is not None else ""
        return f"{self.name}{ends} at {self.at:.2f} s"

    @property
    def name(self) -> str:
        """Its row in the summary."""
        if self.kind != "signal":
            return f"{self.kind} {self.target}"
        for_ever = " for ever" if self.value == "STOP" and self.seconds is None else ""
        return f"{self.target} {self.value}{for_ever}"


def choose(chance: random.Random, program: str, helpers: tuple[str, ...]) -> list[Fault]:
    """Return one to three faults for a program."""
    if chance.random() < 0.15:
        # Only the kernel ends a process that is stopped when its parent dies.
        below, above = chance.choice(_PARENTS)
        at = _moment(chance)
        return [
            Fault("signal", below, "STOP", at),
            Fault("signal", above, "KILL", at + chance.uniform(0.3, 1.0)),
        ]
    made = [_choose_one(chance, program, helpers) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
    # Two of one limit or folder would exclude each other.
    return list({fault.target if fault.kind != "signal" else str(fault): fault for fault in made}.values())


def _choose_one(chance: random.Random, program: str, helpers: tuple[str, ...]) -> Fault:
    kind = chance.choice(("signal", "signal", "signal", "signal", "limit", "disk", "endpoint"))
    if kind == "limit":
        target = chance.choice(sorted(LIMITS))
        sizes = {"files": (16, 128), "memory": (100 << 20, 1 << 30), "file size": (0, 64 << 10)}[target]
        return Fault("limit", target, str(chance.randint(*sizes)))
    if kind == "disk":
        return Fault("disk", chance.choice(("tmp", "logs", "cache")), str(chance.choice((4, 64, 256))))
    if kind == "endpoint" and "endpoint" in helpers:
        return Fault("endpoint", "faults", str(chance.choice((0.1, 0.5, 1.0))))
    target = chance.choice((*PARTS, "engine", "engine", OPENING, OPENING, *helpers))
    is_ours = target in PARTS or target == "endpoint"
    value = chance.choice(sorted(SIGNALS if is_ours or program == "engine" else ENDINGS))
    # Nobody would continue an engine that is stopped for ever, or wait for it.
    can_last = target in PARTS and chance.random() < 0.5
    seconds = None if value != "STOP" or can_last else chance.uniform(0.05, 3.0)
    at = chance.uniform(0.0, 0.2) if target == OPENING else _moment(chance)
    return Fault("signal", target, value, at, seconds)


def before_start(faults: list[Fault]) -> Callable[[], None]:
    """Return what the child does before it executes the program: it takes its limits."""

    def apply() -> None:
        for number in ENDINGS.values():
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
        for fault in faults:
            if fault.kind == "limit":
                size = int(fault.value)
                resource.setrlimit(LIMITS[fault.target], (size, size))

    return apply


@contextlib.contextmanager
def small_disks(faults: list[Fault], folder: Path) -> Generator[None]:
    """Mount a small file system at each folder that a fault names. Without root the fault does nothing."""
    mounted = list[Path]()
    try:
        for fault in faults:
            if fault.kind == "disk" and os.geteuid() == 0:
                place = folder / fault.target
                command = ["mount", "-t", "tmpfs", "-o", f"size={fault.value}k,mode=700", "chaos", str(place)]
                subprocess.run(command, check=True)
                mounted.append(place)
        yield
    finally:
        for place in mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)


def find(target: str, program: int, helpers: dict[str, int]) -> list[int]:
    """Return the pids that a fault may be for now."""
    if target == "engine":
        return [program]
    if target in helpers:
        return [helpers[target]]
    if target == OPENING:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [program] if psutil.Process(program).children() else []
        return []
    found = list[int]()
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(program).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                # A zygote has the repl's name, too, before it starts; stopped then, it would stop its parent.
                is_repl = target != "repl" or (process.parent() or process).name() == PARTS["init"]
                if process.name() == PARTS.get(target) and is_repl:
                    found.append(process.pid)
    return sorted(found)


def send(pid: int, value: str) -> None:
    """Send a signal by its name; the process may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, getattr(signal, f"SIG{value}"))


def _moment(chance: random.Random) -> float:
    # Most of what can go wrong does so early.
    return 4.0 * chance.random() ** 2
