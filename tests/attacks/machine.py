"""Find the processes of a backend's sandboxes on this machine, and what they hold."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from docker_support import DAEMON_SOCKET
from process_support import cgroups_of, processes_named

from supdist.engine.jail.cgroups import CgroupBase
from supdist.engine.sandbox.owner import current_owner

CGROUPS = CgroupBase.find() is not None
"""Whether the process backend has control groups here."""

_CGROUPS = Path("/sys/fs/cgroup")
_DAEMONS = re.compile(r"/(overlay2|containerd|containers|netns)/")


class Machine:
    """The process backend's: every sandbox is below the engine.

    Attributes:
        config: what of a sandbox's config says the backend.
        start_seconds: the longest time that a daemon takes for a start or a removal.
        has_host_processes: whether a guest's processes are processes of this kernel.
        hides_init: whether a guest sees its own processes alone in /proc, and not even init.
        has_own_users: whether each sandbox has a user of this machine for itself, where the engine is root.
        devices: what a guest's /dev has besides what every one has.
        most_starts: how many at once are a crowd.
        soak: how many one after another show what each leaves.
        dead_devices: what is there, too, and can neither be opened nor listed nor written to.
        scratch_part: bytes of a scratch folder, of what all of them have together.
        protects_init: whether a guest can neither kill its init nor write to its descriptors.
        counts_refusals: whether the kernel tells the host of processes that it refused.
        tells_walls: whether a guest's /proc tells of its filter.
        slowness: how much longer it takes until an interrupt is heard, or thousands of system calls are made.
        orphans: how many its kernel makes in a second or two.
        own_paths: paths of which a guest has its own, where the host's are meant.
        missing: walls that a sandbox says it lacks.
        has_user_namespaces: whether each sandbox has a user namespace, by which the kernel counts signals.
        has_own_kernel: whether a guest's /proc is about a kernel of its own.
        guards_priority: whether a guest cannot raise its own priority.
    """

    start_seconds = 0.0
    has_host_processes = True
    hides_init = True
    has_own_users = os.geteuid() == 0
    devices: frozenset[str] = frozenset()
    dead_devices: frozenset[str] = frozenset()
    scratch_part = 1 / 2
    most_starts = 100
    soak = 60
    protects_init = True
    counts_refusals = os.geteuid() == 0
    tells_walls = True
    slowness = 1
    orphans = 200
    own_paths: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()
    has_user_namespaces = True
    has_own_kernel = False
    guards_priority = True

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    @property
    def source(self) -> str:
        """The config as source, for programs that call ``open_sandbox`` or ``SyncSandbox``."""
        return f"__import__('supdist.engine').engine.SandboxConfig.model_validate({self.config!r})"

    def inits(self, engine: int | None = None) -> list[int]:
        """The first process of each sandbox of an engine: of this one, or of another process."""
        return sorted(processes_named("supdist-init", engine))

    def processes(self, engine: int | None = None) -> list[psutil.Process]:
        """Every process below an engine and behind its walls."""
        return psutil.Process(engine).children(recursive=True)

    def is_swept(self, engine: int, processes: Sequence[psutil.Process]) -> bool:
        """Whether nothing is left of a dead engine that had these processes."""
        return not any(cgroups_of(process.pid) for process in processes)

    def marked(self, word: str, before: set[int]) -> list[int]:
        """Processes of this machine that have a word in their arguments.

        Args:
            word: that of a guest's process.
            before: ``inits`` when its sandbox was not yet there.
        """
        found: list[int] = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def mounts(self) -> int:
        """Of the engine's namespace, without those of container daemons, which other programs use."""
        places = (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
        return sum(_DAEMONS.search(place) is None for place in places)

    def cgroups(self) -> int:
        """Control groups of the sandboxes: beside each other, and named after their zygote."""
        own = cgroup_folders("self")
        parents: set[Path] = set()
        for pid in self.inits():
            with contextlib.suppress(OSError):
                folders = cgroup_folders(pid)
                parents |= {folder.parent for key, folder in folders.items() if folder != own.get(key)}
        zygotes = processes_named("supdist-zygote")
        groups = {
            group for parent in parents for zygote in zygotes for group in parent.glob(f"supdist-{zygote}-*")
        }
        return len(groups)

    def others(self) -> dict[str, int]:
        """What else is held, by its name."""
        return {}

    def close(self) -> None:
        """Ask nobody any more."""


class DockerMachine(Machine):
    """The docker backend: containers labelled with their engine, and folders with contexts."""

    start_seconds = 0.8
    soak = 20  # a start and a removal take a daemon half a second, or a whole one
    hides_init = False
    has_own_users = False
    counts_refusals = True
    has_user_namespaces = False
    dead_devices = frozenset({"mqueue", "tty", "ptmx"})
    scratch_part = 1 / 4
    own_paths = frozenset(
        {"/etc/shadow", "/root", "/home", "/var", "/sys", "/boot", "/etc/hostname", "/etc/machine-id"}
    )

    def __init__(self, config: dict[str, Any]) -> None:
        import docker

        super().__init__(config)
        self._client: Any = docker.APIClient(f"unix://{DAEMON_SOCKET}", version="1.41", timeout=20)
        self._client.headers["Connection"] = "close"
        self._pids: dict[str, int] = {}

    def containers(self, engine: int | None = None) -> list[str]:
        """Those of an engine, alive or dead."""
        place = current_owner().rsplit(":", 2)[0]
        found = self._client.containers(all=True, filters={"label": "supdist.lease"})
        mine = f"{place}:{engine or os.getpid()}:"
        return [each["Id"] for each in found if each["Labels"]["supdist.lease"].startswith(mine)]

    def told(self) -> str:
        """All that the daemon tells of its containers, and of their images with their layers, as text."""
        told: list[Any] = []
        for container in self.containers():
            about = self._client.inspect_container(container)
            image = about["Image"]
            told += [about, self._client.inspect_image(image), self._client.history(image)]
        return json.dumps(told)

    def inits(self, engine: int | None = None) -> list[int]:
        """See ``Machine.inits``. Under gVisor it is the process of the guest's kernel."""
        from docker.errors import NotFound

        alive: list[int] = []
        for container in self.containers(engine):
            if not self._pids.get(container):
                with contextlib.suppress(NotFound):
                    self._pids[container] = self._client.inspect_container(container)["State"]["Pid"]
            pid = self._pids.get(container)
            if pid and psutil.pid_exists(pid):
                alive.append(pid)
        return alive

    def processes(self, engine: int | None = None) -> list[psutil.Process]:
        """See ``Machine.processes``."""
        found = super().processes(engine)
        for pid in self.inits(engine):
            with contextlib.suppress(psutil.NoSuchProcess):
                init = psutil.Process(pid)
                found += [init, *init.children(recursive=True)]
        return found

    def is_swept(self, engine: int, processes: Sequence[psutil.Process]) -> bool:
        """See ``Machine.is_swept``."""
        return not self.containers(engine)

    def cgroups(self) -> int:
        """See ``Machine.cgroups``: of every container that was ever seen."""
        return sum(1 for container in self._pids for _ in _CGROUPS.glob(f"*/docker/{container}"))

    def others(self) -> dict[str, int]:
        """See ``Machine.others``."""
        folders = Path(tempfile.gettempdir()).glob("supdist-contexts-*/*/")
        return {"containers": len(self.containers()), "folders": sum(1 for _ in folders)}

    def close(self) -> None:
        """See ``Machine.close``."""
        self._client.close()


class GvisorMachine(DockerMachine):
    """gVisor: the host does not see a guest's processes, and each system call takes microseconds more."""

    start_seconds = 2.0
    has_host_processes = False
    devices = frozenset({"net", "net/tun", "fuse", "tty", "ptmx"})
    most_starts = 30  # each has both processors for a second
    protects_init = False
    counts_refusals = False
    tells_walls = False
    slowness = 3  # each is caught by ptrace, where there is no better way for it
    orphans = 60
    missing = ("limits on memory and processes (the container's runtime ignores control groups)",)
    has_own_kernel = True
    guards_priority = False  # a number of its own kernel's, which no scheduler of the host's reads

    def marked(self, word: str, before: set[int]) -> list[int]:
        """See ``Machine.marked``: this machine sees one process for each sandbox."""
        return [pid for pid in self.inits() if pid not in before]


MACHINES: dict[str, type[Machine]] = {
    "process": Machine,
    "docker": DockerMachine,
    "docker-runsc": GvisorMachine,
}


def cgroup_folders(pid: int | str) -> dict[str, Path]:
    """A process's control groups by controller (v2: the empty name), as folders of this process's view."""
    folders: dict[str, Path] = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            mount = _cgroup_mount(controller)
            if mount is not None:
                folders[controller] = mount / path.lstrip("/")
    return folders


def _cgroup_mount(controller: str) -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split(" ", 2)
        if (kind == "cgroup2" and not controller) or (
            kind == "cgroup" and controller and controller in options.split(" ")[-1].split(",")
        ):
            return Path(head.split()[4])
    return None


def names(processes: list[psutil.Process]) -> Counter[str]:
    """How many there are of each short name; who has ended has none."""
    found: list[str] = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(process.name())
    return Counter(found)
