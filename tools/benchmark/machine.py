"""Describe the machine: a figure means nothing without it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import zmq

_PACKAGES = (
    "supdist-engine", "pyzmq", "msgspec", "pydantic", "ipykernel", "jupyter_client", "rlms", "smolagents",
)  # fmt: skip

_ISOLATION = ("capabilities", "no_new_privs", "seccomp", "network", "root_writable", "limited")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and when figures were measured.

    Attributes:
        load: the load average of the minute before the run.
        isolation: as measured from inside a sandbox.
    """

    date: str
    cpu: str
    cores: int
    kernel: str
    python: str
    versions: dict[str, str]
    load: float
    isolation: dict[str, Any]

    def as_data(self, load_after: float) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return {**asdict(self), "load_after": load_after}

    def lines(self, load_after: float) -> list[str]:
        """Return lines of text."""
        found = self.isolation
        layers = [f"{name} {'yes' if found[name] else 'no'}" for name in _ISOLATION]
        lines = [
            f"{self.date}: {self.cpu}, {self.cores} cores, {self.kernel}, Python {self.python}",
            ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            f"load {self.load:.2f} before and {load_after:.2f} after",
            f"isolation: {found['backend']}; namespaces {' '.join(found['namespaces'])}; {', '.join(layers)}",
        ]
        # The load after the run is the benchmark's own.
        if self.load > self.cores / 2:
            lines.append("The machine was busy before the run: trust only the ratios, and measure again.")
        return lines


def machine(isolation: Any) -> Machine:
    """Describe this machine now."""
    return Machine(
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions={**_versions(), "libzmq": zmq.zmq_version()},
        load=load(),
        isolation=asdict(isolation),
    )


def load() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]


def _cpu() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
