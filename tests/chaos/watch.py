"""What a program leaves behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_CGROUPS = Path("/sys/fs/cgroup")


def adopt_orphans() -> None:
    """Become the parent of every process below whose parent ends, so that none gets out of sight."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Watch:
    """Watches one program. Nothing of it may be left when it has ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mounts = _mounts(folder)
        self._zygotes = set[int]()

    def look(self, program: int) -> None:
        """Note the zygotes of the program: their control groups have their pids in their names."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(program).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.name() == "supdist-zygote":
                        self._zygotes.add(child.pid)

    def left(self, seconds: float, *, files: bool = True, groups: bool = True) -> list[str]:
        """Return what is still there after some seconds.

        Args:
            seconds: how long to wait for the last to go.
            files: False where the engine was killed outright: the next start removes them.
            groups: False where the engine or a zygote was killed outright, as above.
        """
        deadline = time.monotonic() + seconds
        while (left := self._now(files, groups)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def kill_what_is_left(self) -> None:
        """End the processes, so that the next step is not blamed for them."""
        for process in _below():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        _reap()

    def _now(self, files: bool, groups: bool) -> list[str]:
        _reap()
        left = [f"process {process.pid} {_name(process)}" for process in _below()]
        left += [f"mount {mount}" for mount in sorted(_mounts(self._folder) - self._mounts)]
        if files:
            left += [f"file {path.name} in TMPDIR" for path in (self._folder / "tmp").iterdir()]
        if groups:
            left += [f"control group {group}" for group in self._groups()]
        return left

    def _groups(self) -> list[Path]:
        if not self._zygotes:
            return []
        names = {f"supdist-{pid}-" for pid in self._zygotes}
        # os.walk, unlike rglob, goes on when a folder vanishes.
        folders = (Path(folder) for folder, _, _ in os.walk(_CGROUPS))
        return [folder for folder in folders if any(folder.name.startswith(name) for name in names)]


def alive(process: psutil.Process) -> bool:
    """Return whether it has not ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _below() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if alive(process)]


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return "(ended)"


def _reap() -> None:
    # Only orphans are left: every program that the step started was waited for.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _mounts(folder: Path) -> set[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return {place for place in (line.split()[1] for line in lines) if place.startswith(str(folder))}
