"""Processes that the tests start, and processes that the engine started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

COMMAND = (sys.executable, "-m", "supdist.engine")

MODEL_VARIABLES = (
    "TOGETHER_API_KEY",
    "OPENAI_API_KEY",
    "OPENROUTER_API_KEY",
    "VLLM_API_KEY",
    "LM_API_TOKEN",
    "LLAMACPP_API_KEY",
    "BASE_URL",
    "OPENAI_BASE_URL",
    "SUPERVISOR_MODEL",
    "WORKER_MODEL",
    "JUDGE_MODEL",
    "OLLAMA_HOST",
    "LMSTUDIO_BASE_URL",
    "LLAMACPP_BASE_URL",
    "VLLM_BASE_URL",
)
"""Environment variables that name endpoints and models."""


def clean_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without the user's keys and models."""
    kept = {name: value for name, value in os.environ.items() if name not in MODEL_VARIABLES}
    return kept | changes


def restore_sigint() -> None:
    """Let a child be interrupted. A shell starts background jobs with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@asynccontextmanager
async def started(
    *command: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> AsyncGenerator[Process]:
    """Start a process with three pipes; kill it at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=1 << 26,
        cwd=cwd,
        env=env,
        preexec_fn=restore_sigint,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.communicate()


async def ended(process: Process, seconds: float = 60.0) -> tuple[int, str, str]:
    """Wait for a process; return its exit status, stdout and stderr."""
    async with asyncio.timeout(seconds):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


def terminal_output(controller: int) -> Iterator[bytes]:
    """Yield what is written to a pseudo-terminal, until every program has closed it."""
    with contextlib.suppress(OSError):
        while piece := os.read(controller, 65536):
            yield piece


def processes_running(*command: str) -> list[int]:
    """Return the pids of all processes on this machine with this command line."""
    found: list[int] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline() == list(command) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def alive(pids: set[int]) -> set[int]:
    """Return those of the pids whose process has not ended."""
    left: set[int] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                left.add(pid)
    return left


def descendants(pid: int | None = None) -> set[int]:
    """Return the pids of all processes below one; of this process by default."""
    return {child.pid for child in psutil.Process(pid).children(recursive=True)}


def processes_named(name: str, parent: int | None = None) -> set[int]:
    """Return the pids with that short name below a process; below this one by default.

    Names: supdist-zygote, supdist-shim, supdist-spare (a shim before its sandbox opens), supdist-init.
    """
    below = psutil.Process(parent).children(recursive=True)
    return {child.pid for child in below if _name(child) == name}


def guest_processes_named(name: str) -> set[int]:
    """Return the same, but only of sandboxes that are open: mostly one more waits for the next."""
    below = psutil.Process().children(recursive=True)
    guests = [child for child in below if _name(child) == "python"]
    return {parent.pid for guest in guests for parent in guest.parents() if _name(parent) == name}


def program(code: str, seconds: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds,
        env={**os.environ, **environment},
    )


def zygotes() -> set[int]:
    """Return the pids of this process's zygotes."""
    # A new shim has the zygote's name for a moment, but is no direct child.
    return {child.pid for child in psutil.Process().children() if _name(child) == "supdist-zygote"}


def cgroups_of(zygote: int) -> list[Path]:
    """Return the control groups whose names hold a zygote's pid."""
    # os.walk, unlike rglob, goes on when a folder vanishes.
    folders = (Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup"))
    return [folder for folder in folders if folder.name.startswith(f"supdist-{zygote}-")]


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return ""
