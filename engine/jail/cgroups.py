"""Make a control group for each sandbox (cgroups(7)), of version 2 or else 1."""

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
# While some processes are moved, others may fork.
_MOVE_ROUNDS = 10
_PERIOD_US = 100_000
V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")


class Cgroup(ABC):
    """The control group of one sandbox; ``folders`` are its folders by controller."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folders = folders
        self._files: dict[str, int] = {}

    def add(self, pid: int) -> None:
        """Move a process in, with its future children.

        Raises:
            OSError: the kernel refuses.
        """
        # With version 1 this takes milliseconds.
        for folder in set(self._folders.values()):
            write(f"{folder}/cgroup.procs", str(pid))

    @abstractmethod
    def limit(self, limits: ResourceLimits) -> None:
        """Apply the limits.

        Raises:
            OSError: the kernel refuses.
        """

    @property
    def limits_cpus(self) -> bool:
        """Whether ``limit`` holds the share of the processors."""
        return True

    @abstractmethod
    def oom_kills(self) -> int:
        """Return how many processes were killed because memory ran out."""

    @abstractmethod
    def cpu_seconds(self) -> float:
        """Return the processor time so far."""

    @abstractmethod
    def peak_memory(self) -> int:
        """Return the peak in bytes."""

    def refused_forks(self) -> int:
        """Return how often the limit on pids was reached."""
        return _field(self._read("pids", "pids.events"), "max")

    def _read(self, controller: str, name: str) -> str:
        # Files stay open: to open one takes longer than to read it, and each cell reads six.
        fd = self._files.get(name)
        if fd is None:
            fd = self._files[name] = os.open(
                f"{self._folders[controller]}/{name}", os.O_RDONLY | os.O_CLOEXEC
            )
        return read_from(fd)

    def remove(self) -> None:
        """Remove the group, whose processes must have ended."""
        while self._files:
            os.close(self._files.popitem()[1])
        for folder in set(self._folders.values()):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(folder)


class CgroupV1(Cgroup):
    """One folder per controller."""

    def limit(self, limits: ResourceLimits) -> None:
        """See ``Cgroup.limit``."""
        memory = self._folders["memory"]
        write(f"{memory}/memory.limit_in_bytes", str(limits.memory_bytes))
        # Missing if the kernel does not count swap.
        with contextlib.suppress(FileNotFoundError):
            write(f"{memory}/memory.memsw.limit_in_bytes", str(limits.memory_bytes))
        write(f"{memory}/memory.swappiness", "0")
        write(f"{self._folders['pids']}/pids.max", str(limits.pids + 1))  # and init
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
    """One folder."""

    @property
    def limits_cpus(self) -> bool:
        """See ``Cgroup.limits_cpus``."""
        # Missing if systemd delegates no cpu controller to this user.
        return os.path.exists(f"{self._folders['memory']}/cpu.max")

    def limit(self, limits: ResourceLimits) -> None:
        """See ``Cgroup.limit``."""
        folder = self._folders["memory"]
        write(f"{folder}/memory.max", str(limits.memory_bytes))
        # Missing if the kernel does not count swap.
        with contextlib.suppress(FileNotFoundError):
            write(f"{folder}/memory.swap.max", "0")
        # All processes or none: with one missing, the state of the cell would be unknown.
        write(f"{folder}/memory.oom.group", "1")
        write(f"{folder}/pids.max", str(limits.pids + 1))  # and init
        with contextlib.suppress(FileNotFoundError):
            write(f"{folder}/cpu.max", f"{int(limits.cpus * _PERIOD_US)} {_PERIOD_US}")

    def oom_kills(self) -> int:
        """See ``Cgroup.oom_kills``."""
        return _field(self._read("memory", "memory.events"), "oom_kill")

    def cpu_seconds(self) -> float:
        """See ``Cgroup.cpu_seconds``."""
        return _field(self._read("memory", "cpu.stat"), "usage_usec") / 1e6

    def peak_memory(self) -> int:
        """See ``Cgroup.peak_memory``."""
        # Missing before Linux 5.19.
        with contextlib.suppress(FileNotFoundError):
            return int(self._read("memory", "memory.peak"))
        return 0


class CgroupBase:
    """The parents of all sandboxes' groups, by controller."""

    def __init__(self, version: Literal[1, 2], parents: dict[str, Path]) -> None:
        self.version: Literal[1, 2] = version
        self._parents = parents

    @classmethod
    def find(cls, mount: Path = MOUNT, membership: Path = Path("/proc/self/cgroup")) -> CgroupBase | None:
        """Return the first place where groups can be made and limited, or None."""
        for base in _candidates(mount, membership):
            if base.works():
                return base
        return None

    def works(self) -> bool:
        """Return whether a group can be made here."""
        try:
            self.create(f"{os.getpid()}-probe").remove()
        except OSError:
            return False
        return True

    def create(self, name: str) -> Cgroup:
        """Make a group.

        Raises:
            OSError: it cannot be made or limited; nothing is left of it.
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
                # A read-only tree raises EROFS even if the folder does not exist.
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            raise
        return group

    def sweep(self, name: str) -> bool:
        """Remove a killed sandbox's group; return whether some of it is not empty yet."""
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
        """Remove all groups of a zygote; return whether some are not empty yet."""
        names = {
            folder.name.removeprefix(PREFIX)
            for parent in set(self._parents.values())
            for folder in parent.glob(f"{PREFIX}{owner}-*")
        }
        left = [name for name in names if self.sweep(name)]
        return bool(left)

    def sweep_orphans(self) -> None:
        """Remove the empty groups of ended zygotes."""
        for parent in set(self._parents.values()):
            for folder in parent.glob(f"{PREFIX}*-*"):
                owner = folder.name.removeprefix(PREFIX).split("-")[0]
                if owner.isdecimal() and not os.path.exists(f"/proc/{owner}"):
                    with contextlib.suppress(OSError):
                        folder.rmdir()


# Places to try, the best first.
def _candidates(mount: Path, membership: Path) -> Iterator[CgroupBase]:
    # Each place is prepared only when it is tried, so that no other group of the machine changes.
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


# Groups of version 2 that can be parents; `here` is the group of this process.
def _places(mount: Path, here: Path) -> Iterator[Path]:
    # In a delegated group the limits of its unit hold for the sandboxes too, and they end with it.
    if mount in here.parents and _is_delegated(here.parent, mount):
        yield here.parent  # this process is in the leaf that `_vacate` makes
    if _is_delegated(here, mount) and _vacate(here):
        yield here
    # Beside this process: systemd does not mark the units of a user as delegated.
    if mount in here.parents:
        yield here.parent
    yield mount


# Whether systemd (CGROUP_DELEGATION.md) or a container allows groups below this one.
def _is_delegated(group: Path, mount: Path) -> bool:
    if group == mount:
        # The root of a container's namespace has the file, the root of the machine does not.
        return (group / "cgroup.type").exists()
    # System units have both attributes; before systemd 251 only the second.
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _vacate(group: Path) -> bool:
    """Move the processes of a group into a child group; return whether that worked."""
    # A group with processes cannot enable controllers for its children (cgroups(7), "no internal processes").
    leaf = group / _LEAF
    try:
        if not {"memory", "pids"} <= set((group / "cgroup.controllers").read_text().split()):
            return False
        leaf.mkdir(exist_ok=True)
        for _ in range(_MOVE_ROUNDS):
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
    # Memory and pids in one write: a group with processes refuses memory. With pids alone it would become a
    # threaded domain, below which ordinary groups cannot be used (cgroups(7), "Thread mode").
    with contextlib.suppress(OSError):
        write(f"{parent}/cgroup.subtree_control", "+memory +pids")
        # Alone: a tree may have no cpu controller.
        write(f"{parent}/cgroup.subtree_control", "+cpu")


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
