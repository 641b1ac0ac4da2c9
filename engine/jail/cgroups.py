"""A control group per sandbox: memory, processes and processor time of the whole tree, and what it used.

Version 2 (one tree) where its controllers are there to be used, else version 1 (a tree per controller). Where
neither is writable, limits per process and a watchdog are what is left, and the sandbox's usage says so.
"""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ...sandbox_image.guest.procfs import read_from, write
from ...sandbox_image.protocol import ResourceLimits

MOUNT = Path("/sys/fs/cgroup")
PREFIX = "supdist-"
_LEAF = f"{PREFIX}engine"
_ROUNDS = 10
"""How often a group is looked through for processes that were forked while others were moved."""
_PERIOD_US = 100_000
V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")


class Cgroup(ABC):
    """One sandbox's control group, from ``add`` to ``remove``."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders
        self._books: dict[str, int] = {}

    def add(self, pid: int) -> None:
        """Move a process in; what it forks from then on is in it too. Version 1 takes its time (milliseconds).

        Raises:
            OSError: it is not allowed here.
        """
        for folder in set(self._folders.values()):
            write(f"{folder}/cgroup.procs", str(pid))

    @abstractmethod
    def limit(self, limits: ResourceLimits) -> None:
        """Apply the limits.

        Raises:
            OSError: the kernel refuses one.
        """

    @abstractmethod
    def oom_kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""

    @abstractmethod
    def cpu_seconds(self) -> float:
        """Processor time of all processes so far."""

    @abstractmethod
    def peak_memory(self) -> int:
        """The most bytes that were in use at once."""

    def refused_forks(self) -> int:
        """How often a process or thread was refused for want of room."""
        return _field(self._read("pids", "pids.events"), "max")

    def _read(self, controller: str, name: str) -> str:
        """A file as it is now. It stays open: to open one takes longer than to read it, and each cell reads six."""
        fd = self._books.get(name)
        if fd is None:
            fd = self._books[name] = os.open(
                f"{self._folders[controller]}/{name}", os.O_RDONLY | os.O_CLOEXEC
            )
        return read_from(fd)

    def remove(self) -> None:
        """Remove the group; its processes must have ended."""
        while self._books:
            os.close(self._books.popitem()[1])
        for folder in set(self._folders.values()):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(folder)


class CgroupV1(Cgroup):
    """A folder in each controller's tree."""

    def limit(self, limits: ResourceLimits) -> None:
        """See ``Cgroup.limit``."""
        memory = self._folders["memory"]
        write(f"{memory}/memory.limit_in_bytes", str(limits.memory_bytes))
        with contextlib.suppress(FileNotFoundError):  # swap is counted only where the kernel was built for it
            write(f"{memory}/memory.memsw.limit_in_bytes", str(limits.memory_bytes))
        write(f"{memory}/memory.swappiness", "0")
        write(f"{self._folders['pids']}/pids.max", str(limits.pids + 1))  # init is not the user's
        cpu = self._folders["cpu"]
        write(f"{cpu}/cpu.cfs_period_us", str(_PERIOD_US))
        write(f"{cpu}/cpu.cfs_quota_us", str(int(limits.cpus * _PERIOD_US)))

    def oom_kills(self) -> int:
        """See ``Cgroup.oom_kills``."""
        return _field(self._read("memory", "memory.oom_control"), "oom_kill")

    def cpu_seconds(self) -> float:
        """See ``Cgroup.cpu_seconds``."""
        return int(self._read("cpuacct", "cpuacct.usage")) / 1e9

    def peak_memory(self) -> int:
        """See ``Cgroup.peak_memory``."""
        return int(self._read("memory", "memory.max_usage_in_bytes"))


class CgroupV2(Cgroup):
    """One folder of the unified tree."""

    def limit(self, limits: ResourceLimits) -> None:
        """See ``Cgroup.limit``."""
        folder = self._folders["memory"]
        write(f"{folder}/memory.max", str(limits.memory_bytes))
        with contextlib.suppress(FileNotFoundError):
            write(f"{folder}/memory.swap.max", "0")
        write(f"{folder}/memory.oom.group", "1")
        write(f"{folder}/pids.max", str(limits.pids + 1))
        with contextlib.suppress(FileNotFoundError):  # systemd may hand no cpu down to a user
            write(f"{folder}/cpu.max", f"{int(limits.cpus * _PERIOD_US)} {_PERIOD_US}")

    def oom_kills(self) -> int:
        """See ``Cgroup.oom_kills``."""
        return _field(self._read("memory", "memory.events"), "oom_kill")

    def cpu_seconds(self) -> float:
        """See ``Cgroup.cpu_seconds``."""
        return _field(self._read("memory", "cpu.stat"), "usage_usec") / 1e6

    def peak_memory(self) -> int:
        """See ``Cgroup.peak_memory``. 0 before Linux 5.19, which does not tell."""
        with contextlib.suppress(FileNotFoundError):
            return int(self._read("memory", "memory.peak"))
        return 0


class CgroupBase:
    """Where an engine's sandboxes get their groups. Found once, by trying."""

    def __init__(self, version: Literal[1, 2], parents: dict[str, Path]) -> None:
        self.version: Literal[1, 2] = version
        self._parents = parents

    @classmethod
    def find(cls, mount: Path = MOUNT, membership: Path = Path("/proc/self/cgroup")) -> CgroupBase | None:
        """The first place where a group can be made and limited; None where there is none."""
        for base in _candidates(mount, membership):
            if base.works():
                return base
        return None

    def works(self) -> bool:
        """Whether a group with its limits' files can be made here. The probe is removed."""
        try:
            self.create(f"{os.getpid()}-probe").remove()
        except OSError:
            return False
        return True

    def create(self, name: str) -> Cgroup:
        """A new group.

        Raises:
            OSError: it cannot be made, or lacks a file that a limit is written to. Nothing is left of it.
        """
        folders = {controller: f"{parent}/{PREFIX}{name}" for controller, parent in self._parents.items()}
        group = CgroupV1(folders) if self.version == 1 else CgroupV2(folders)
        needed = ("memory.limit_in_bytes", "memory.oom_control") if self.version == 1 else ("memory.max",)
        try:
            for folder in set(folders.values()):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder)
            for file in (*(f"{folders['memory']}/{file}" for file in needed), f"{folders['pids']}/pids.max"):
                if not os.access(file, os.W_OK):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
        except OSError:
            for folder in set(folders.values()):
                # A tree that is read-only says so of what is not there, too.
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            raise
        return group

    def sweep(self, name: str) -> bool:
        """Remove the group of a sandbox that was killed; whether any of it is left, not empty yet."""
        left = False
        for parent in set(self._parents.values()):
            try:
                os.rmdir(f"{parent}/{PREFIX}{name}")
            except FileNotFoundError:
                continue
            except OSError:
                left = True
        return left

    def sweep_all(self, owner: int) -> bool:
        """The same for all that this zygote has made."""
        names = {
            folder.name.removeprefix(PREFIX)
            for parent in set(self._parents.values())
            for folder in parent.glob(f"{PREFIX}{owner}-*")
        }
        left = [name for name in names if self.sweep(name)]
        return bool(left)

    def sweep_the_dead(self) -> None:
        """Remove the empty groups of zygotes that are gone."""
        for parent in set(self._parents.values()):
            for folder in parent.glob(f"{PREFIX}*-*"):
                owner = folder.name.removeprefix(PREFIX).split("-")[0]
                if owner.isdecimal() and not os.path.exists(f"/proc/{owner}"):
                    with contextlib.suppress(OSError):
                        folder.rmdir()


def _candidates(mount: Path, membership: Path) -> Iterator[CgroupBase]:
    """Places to try: of version 2 the best that there is (``_places``), then version 1 below this process's groups.

    A place is made ready when its turn has come, so that no other group of the machine is changed.
    """
    unified: str | None = None
    own: dict[str, str] = {}
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            unified = path
        for controller in controllers.split(","):
            own[controller] = path
    if unified is not None and (mount / "cgroup.controllers").exists():
        for parent in _places(mount, mount / unified.lstrip("/")):
            _enable(parent)
            yield CgroupBase(2, dict.fromkeys(("memory", "pids"), parent))
    if all((mount / controller).is_dir() and controller in own for controller in V1_CONTROLLERS):
        yield CgroupBase(1, {name: mount / name / own[name].lstrip("/") for name in V1_CONTROLLERS})


def _places(mount: Path, here: Path) -> Iterator[Path]:
    """Groups of version 2 that may become parents, the process's own being ``here``.

    In a delegated group, the limits of its unit hold for the sandboxes too, and they end with it, however it ends.
    Else beside this process, as in all units of a user, which systemd does not mark; then at the root.
    """
    if mount in here.parents and _is_delegated(here.parent, mount):
        yield here.parent  # this process is in a leaf of it, as the next line would have it
    if _is_delegated(here, mount) and _vacate(here):
        yield here
    if mount in here.parents:
        yield here.parent
    yield mount


def _is_delegated(group: Path, mount: Path) -> bool:
    """Whether groups below this one are ours to make: systemd says so (CGROUP_DELEGATION.md), or a container is all of it."""
    if group == mount:
        return (group / "cgroup.type").exists()  # every group has one but the machine's root
    for name in (
        "user.delegate",
        "trusted.delegate",
    ):  # a unit of the system has both, or before systemd 251 the second
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _vacate(group: Path) -> bool:
    """Move a group's processes into a leaf of its own: a group that has any cannot hand memory down (cgroups(7))."""
    leaf = group / _LEAF
    try:
        if not {"memory", "pids"} <= set((group / "cgroup.controllers").read_text().split()):
            return False
        leaf.mkdir(exist_ok=True)
        for _ in range(_ROUNDS):
            pids = (group / "cgroup.procs").read_text().split()
            if not pids:
                return True
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    write(f"{leaf}/cgroup.procs", pid)
    except OSError:
        with contextlib.suppress(OSError):
            leaf.rmdir()
    return False


def _enable(parent: Path) -> None:
    """Hand the controllers down: the needed ones, then the one that a tree may lack.

    A group with processes of its own refuses memory. It would take the others, and be a threaded one from then on,
    below which no ordinary group can be used: so these two go together.
    """
    with contextlib.suppress(OSError):
        write(f"{parent}/cgroup.subtree_control", "+memory +pids")
        write(f"{parent}/cgroup.subtree_control", "+cpu")


def _field(text: str, name: str) -> int:
    """A line ``name number`` of a file; 0 where it does not say."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
